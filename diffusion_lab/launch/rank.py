"""One of several ranks: it ends with the others, writes why it failed, and finds ranks that do not answer."""

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
from diffusion_lab.errors import ConfigError, causes
from diffusion_lab.launch.job import record_error
from diffusion_lab.launch.process import die_with_parent

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of torchelastic: the file into which a rank writes why it failed."""

LOST = ("timed out", "timeout", "closed by peer", "connection reset", "broken pipe", "connection refused", "aborted")
"""Words in errors of torch.distributed that another rank has caused."""

SETTLING = 2.0
"""Seconds for which a rank that has lost contact waits, so that the failing rank can write why it failed."""

GRACE = 30.0
"""Seconds for which a stopped rank waits for rank 0, which saves."""

_line: list[str] = []


def die_with_agent() -> None:
    """Let this process, if it is a rank of our agent, die with the agent, however that ends."""
    if AGENT not in os.environ:
        return
    agent = int(os.environ[AGENT])
    die_with_parent(signal.SIGKILL)

    def watch() -> None:  # on systems without this signal, or if the agent died before the call above
        while os.getppid() == agent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="agent").start()


@contextmanager
def working(directory: Path, task: str) -> Iterator[None]:
    """Context around the work of one of several ranks; without effect for a single process.

    Raises:
        SystemExit: in place of an error that another rank has caused, and of a refusal.
    """
    if cluster_ranks()[2] == 1:
        yield
        return
    try:
        yield
        leave_group()
    except SystemExit:
        wait_for_first()
        raise
    except Exception as error:
        if caused_by_another(error):
            write_error_file(diagnosed(error))
            sys.exit(1)
        refused = isinstance(error, ConfigError)
        text = str(error) if refused else f"failed: {type(error).__name__}: {error}"
        then = getattr(error, "then", "")
        text = " ".join(text.split())[:500] + (f"; {then}" if refused and then and cluster_ranks()[1] == 0 else "")
        cause = described("refused" if refused else "failed", text, getattr(error, "status", 1))
        write_error_file(cause)
        if refused and AGENT in os.environ:  # the agent prints it
            sys.exit(cause["status"])
        if not refused and AGENT not in os.environ:
            _line.append(sentence(cause, advice(directory, task)))
        raise


def leave_group() -> None:
    """Close the connections to the other ranks; their threads, if still running at exit, can abort the process."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def print_last_line() -> None:
    """Print below the traceback which rank failed, unless our agent prints it."""
    while _line:
        print(_line.pop(), file=sys.stderr, flush=True)


def described(kind: str, text: str, status: int = 1, **other: Any) -> dict[str, Any]:
    """Describe a failure of this rank, as it is written for the agent."""
    entry = {"rank": cluster_ranks()[1], "pid": os.getpid(), "time": time.time()}
    return {**entry, "kind": kind, "text": text, "status": status, **other}


def sentence(cause: dict[str, Any], advice: str) -> str:
    """Return the one line about a failure that is printed."""
    return f"rank {cause['rank']} (process {cause['pid']}) {cause['text']}; all ranks are stopped; {advice}"


def write_error_file(cause: dict[str, Any]) -> None:
    """Write a failure for torchelastic, in its format; also beside a sweep's job if this rank alone knows of it."""
    if ERROR_FILE in os.environ:
        file = Path(os.environ[ERROR_FILE])
        message = {**cause, "message": cause["text"], "extraInfo": {"timestamp": str(int(cause["time"]))}}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"message": message}))
        partial.replace(file)
    if cause["kind"] == "silent":
        record_error(sentence(cause, "").split(";")[0])


def caused_by_another(error: BaseException) -> bool:
    """Whether another rank has caused an error."""
    dist, ranks = (sys.modules.get(module) for module in ("torch.distributed", "diffusion_lab.ranks"))
    for found in causes(error):
        text = str(found).lower()
        if ranks is not None and isinstance(found, ranks.RankFailed):
            return True
        if (dist is not None and isinstance(found, dist.DistError)) or "gloo" in text or "nccl" in text:
            return any(word in text for word in LOST)
    return False


def diagnosed(error: Exception) -> dict[str, Any]:
    """Describe an error that another rank has caused, naming the rank that did not answer if that can be determined.

    Ranks that do not answer are killed: a stopped process (SIGSTOP) reacts to nothing else.
    """
    elsewhere = ", see the output of the other nodes" * (int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1)
    mine = described("lost", f"lost contact with another rank ({reason(error)}){elsewhere}")
    write_error_file(mine)
    time.sleep(SETTLING)
    if not any("timed out" in str(found).lower() for found in causes(error)):
        return mine
    silent = {rank: process for rank, process in other_ranks().items() if not has_reported(process)}
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
    """Return the first sentence of an error of torch.distributed, without source location and address."""
    line = re.sub(r"^\[\S+\]\s*", "", str(error).splitlines()[0])
    return re.split(r"\. |\s*\[", line)[0].rstrip(".")


def other_ranks() -> dict[int, psutil.Process]:
    """{rank: process} of the other running ranks on this machine."""
    found = {}
    for process in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error):
            environment = process.environ()
            rank = environment.get("RANK", environment.get("SLURM_PROCID"))
            if rank is not None and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found[int(rank)] = process
    return found


def has_reported(process: psutil.Process) -> bool:
    """Whether a rank has written an error file, and so only waits to end."""
    with suppress(psutil.Error):
        return Path(process.environ().get(ERROR_FILE, "/none")).exists()
    return True


def wait_for_first() -> None:
    """Wait until rank 0 has ended: torchelastic and srun end all ranks as soon as one has ended."""
    if cluster_ranks()[1] > 0:
        first = other_ranks().get(0)
        psutil.wait_procs([first], GRACE) if first else time.sleep(SETTLING)
