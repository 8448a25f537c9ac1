"""One of several ranks: it ends when the others do, leaves word of its failure, and finds who does not answer."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from diffusion_lab.config.environment import AGENT, cluster_ranks
from diffusion_lab.config.origin import advice
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch.job import record_error
from diffusion_lab.launch.process import die_with_parent

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable by which torchelastic tells each rank where to leave word of its failure."""

LOST = ("timed out", "timeout", "closed by peer", "connection reset", "broken pipe", "connection refused", "aborted")
"""What torch.distributed's errors say where the fault is another rank's."""

SETTLING = 2.0
"""Seconds for which a rank that has lost the others waits, so that the one at fault can say so."""

GRACE = 30.0
"""Seconds for which a rank that has been stopped waits for the first one to save."""

_line: list[str] = []


def born() -> None:
    """In a rank of an agent of ours: die with the agent, however that ends."""
    if AGENT not in os.environ:
        return
    agent = int(os.environ[AGENT])
    die_with_parent(signal.SIGKILL)

    def watch() -> None:  # where there is no such signal, or the agent died before it was asked for
        while os.getppid() == agent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="agent").start()


@contextmanager
def working(directory: Path, task: str) -> Iterator[None]:
    """Around the work of one of several ranks; nothing at all where there is only one.

    Raises:
        SystemExit: on a rank that only suffers from another's failure, or is refused, in place of the error.
    """
    if cluster_ranks()[2] == 1:
        yield
        return
    try:
        yield
    except SystemExit:
        stay()
        raise
    except Exception as error:
        if lost(error):
            leave(suffered(error))
            sys.exit(1)
        refused = isinstance(error, ConfigError)
        text = str(error) if refused else f"failed: {type(error).__name__}: {error}"
        then = getattr(error, "then", "")
        text = " ".join(text.split())[:500] + (f"; {then}" if refused and then and cluster_ranks()[1] == 0 else "")
        cause = described("refused" if refused else "failed", text, getattr(error, "status", 1))
        leave(cause)
        if refused and AGENT in os.environ:  # which says it
            sys.exit(cause["status"])
        if not refused and AGENT not in os.environ:
            _line.append(sentence(cause, advice(directory, task)))
        raise


def last_line() -> None:
    """Say at the very end, below the traceback, which rank it was, where no agent of ours does."""
    while _line:
        print(_line.pop(), file=sys.stderr, flush=True)


def described(kind: str, text: str, status: int = 1, **other: Any) -> dict[str, Any]:
    """What a rank leaves of its failure."""
    own = {"rank": cluster_ranks()[1], "pid": os.getpid(), "time": time.time()}
    return {**own, "kind": kind, "text": text, "status": status, **other}


def sentence(cause: dict[str, Any], advice: str) -> str:
    """The one line for the user."""
    return f"rank {cause['rank']} (process {cause['pid']}) {cause['text']}; all ranks are stopped; {advice}"


def leave(cause: dict[str, Any]) -> None:
    """Write it where torchelastic looks for it, in its form."""
    if ERROR_FILE in os.environ:
        file = Path(os.environ[ERROR_FILE])
        message = {**cause, "message": cause["text"], "extraInfo": {"timestamp": str(int(cause["time"]))}}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"message": message}))
        partial.replace(file)
    if cause["kind"] == "silent":
        record_error(sentence(cause, "").split(";")[0])


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lost(error: BaseException) -> bool:
    """Whether an error comes from what another rank did, or did not do."""
    dist, ranks = (sys.modules.get(module) for module in ("torch.distributed", "diffusion_lab.ranks"))
    for found in chain(error):
        text = str(found).lower()
        if ranks is not None and isinstance(found, ranks.RankFailed):
            return True
        if (dist is not None and isinstance(found, dist.DistError)) or "gloo" in text or "nccl" in text:
            return any(word in text for word in LOST)
    return False


def suffered(error: Exception) -> dict[str, Any]:
    """What to leave of an error that comes from another rank: which one did not answer, if that can be seen.

    A rank that does not answer is ended: one that is stopped would answer to nothing else.
    """
    elsewhere = ", see the output of the other nodes" * (int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1)
    mine = described("lost", f"lost contact with another rank ({reason(error)}){elsewhere}")
    leave(mine)
    time.sleep(SETTLING)
    if not any("timed out" in str(found).lower() for found in chain(error)):
        return mine
    silent = {rank: process for rank, process in siblings().items() if not has_left(process)}
    stopped = {rank: process for rank, process in silent.items() if process.status() == psutil.STATUS_STOPPED}
    silent = stopped or silent
    if not silent:
        return mine
    rank, process = min(silent.items())
    text = f"did not answer within trainer.timeout{', it is stopped' if stopped else ''}"
    if len(silent) > 1:
        text = f"and others {text}: " + ", ".join(f"rank {one} (process {p.pid})" for one, p in silent.items())
    for one in silent.values():
        with suppress(psutil.Error):
            one.kill()
    return described("silent", text, rank=rank, pid=process.pid)


def reason(error: Exception) -> str:
    """The first sentence of an error of torch.distributed, without the place in its source and the address."""
    line = re.sub(r"^\[\S+\]\s*", "", str(error).splitlines()[0])
    return re.split(r"\. |\s*\[", line)[0].rstrip(".")


def siblings() -> dict[int, psutil.Process]:
    """{rank: process} of the other ranks on this machine that live."""
    found = {}
    for process in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error):
            environment = process.environ()
            rank = environment.get("RANK", environment.get("SLURM_PROCID"))
            if rank is not None and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found[int(rank)] = process
    return found


def has_left(process: psutil.Process) -> bool:
    """Whether a rank has left word of a failure, and so only waits to end."""
    with suppress(psutil.Error):
        return Path(process.environ().get(ERROR_FILE, "/none")).exists()
    return True


def stay() -> None:
    """Do not end before the first rank has: torchelastic and srun end all ranks as soon as one has ended."""
    if cluster_ranks()[1] > 0:
        first = siblings().get(0)
        psutil.wait_procs([first], GRACE) if first else time.sleep(SETTLING)
