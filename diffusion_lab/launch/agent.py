"""Several ranks of a run on this machine, by torchelastic (what torchrun is): all end together, one line says why."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from diffusion_lab.config.environment import AGENT, cluster_ranks
from diffusion_lab.config.origin import advice
from diffusion_lab.config.trainer_keys import machine
from diffusion_lab.launch.process import signals_go_to
from diffusion_lab.launch.rank import sentence

STOPPED = tuple(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Exit statuses of ranks that a signal has stopped."""

KINDS = ("silent", "refused", "failed", "killed", "ended", "lost")
"""How a rank may fail; what stands first here explains what stands later."""


def wanted(trainer: Mapping[str, Any]) -> int:
    """Ranks to start on this machine; 0 where this process works alone, or torchrun or SLURM has started them."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    if cluster_ranks()[2] > 1 or AGENT in os.environ:
        return 0
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices).isdecimal():
        count = int(devices)
    else:  # auto or -1: all GPUs
        count = machine()[0] if trainer.get("accelerator") != "cpu" else 1
    return count if count > 1 or nodes > 1 else 0


def run(command: Sequence[str], trainer: Mapping[str, Any], ranks: int, directory: Path, task: str) -> int:
    """Run a command as several ranks to their end; the exit status, as a shell has it.

    Args:
        command: the command of each rank.
        trainer: `num_nodes`, `rdzv_endpoint` (HOST:PORT of one of them), and `max_restarts` after a rank's death.
        ranks: their number on this machine.
        directory: of the run.
        task: "train" or "sample".
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it reports, we say in one line
    nodes, endpoint = trainer.get("num_nodes") or 1, trainer.get("rdzv_endpoint")
    config = LaunchConfig(
        *(nodes, nodes, ranks),
        run_id=directory.name,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint or "127.0.0.1:0",
        local_addr=None if endpoint else "127.0.0.1",
        max_restarts=trainer.get("max_restarts") or 0,
        signals_to_handle="SIGQUIT",  # the others are passed on here: torchelastic would kill what still saves
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine()[1] // ranks)))
    os.environ[AGENT] = str(os.getpid())
    with passed_on() as received:
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            return conclude(error.failures, received, directory, task)
        finally:
            del os.environ[AGENT]
            (directory / ".stop").unlink(missing_ok=True)  # of ranks that were ended before they could remove it
    return 0


@contextmanager
def passed_on() -> Iterator[list[int]]:
    """Within, each signal that would stop this process goes to its ranks instead, once; those that came."""
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        ranks = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        for child in ranks:
            child.send_signal(number)
        if not ranks:
            sys.exit(128 + number)

    with signals_go_to(pass_on):
        yield received


def conclude(failures: Mapping[int, Any], received: Sequence[int], directory: Path, task: str) -> int:
    """Say which rank failed first and why, unless a signal has stopped them all; the exit status."""
    found = [described(rank, failure) for rank, failure in failures.items()]
    failed = [one for one in found if one["status"] not in STOPPED or one["kind"] in KINDS[:3]]
    if not failed:
        return 128 + received[0] if received else found[0]["status"]
    first = min(failed, key=lambda one: (KINDS.index(one["kind"]), one["time"]))
    if first["kind"] == "refused" and first["rank"] == 0:
        print(f"error: {first['text']}", file=sys.stderr, flush=True)
    else:
        print(sentence(first, advice(directory, task)), file=sys.stderr, flush=True)
    return first["status"]


def described(rank: int, failure: Any) -> dict[str, Any]:
    """What torchelastic knows of a rank that did not end well: what the rank itself has left, or how it ended."""
    message = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    if isinstance(message, dict) and "kind" in message:
        return message
    code, at = failure.exitcode, {"rank": rank, "pid": failure.pid, "time": float(failure.timestamp)}
    if code >= 0:
        return at | {
            "kind": "ended",
            "text": f"ended with exit status {code}; its own message is above",
            "status": code,
        }
    number = signal.Signals(-code)
    why = {
        signal.SIGKILL: " (out of memory?)",
        signal.SIGABRT: " (by NCCL, if another rank did not answer within trainer.timeout; its own message is above)",
    }
    text = f"was killed by {number.name}{why.get(number, '')}"
    return at | {"kind": "killed", "text": text, "status": 128 + number}
