"""Start the ranks of a run on this machine by torchelastic (as torchrun does); report in one line why they failed."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from diffusion_lab.config.environment import AGENT, cluster_ranks, local_ranks
from diffusion_lab.config.origin import advice
from diffusion_lab.config.trainer_keys import compare_devices, machine
from diffusion_lab.launch.process import signals_go_to
from diffusion_lab.launch.rank import sentence
from diffusion_lab.output import say

STOPPED = tuple(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Exit statuses of ranks that a signal has stopped."""

KINDS = ("silent", "refused", "failed", "killed", "ended", "lost")
"""How a rank may fail, in the order of causes: a silent rank makes the others lose contact, not the reverse."""


def ranks_to_start(trainer: Mapping[str, Any]) -> int:
    """Number of ranks to start on this machine; 0 for a single process, and if torchrun or SLURM has started them."""
    if cluster_ranks()[2] > 1 or AGENT in os.environ:
        return 0
    count = local_ranks(trainer)
    if count is None:  # auto or -1: all GPUs
        count = machine()[0] if trainer.get("accelerator") != "cpu" else 1
    return count if count > 1 or (trainer.get("num_nodes") or 1) > 1 else 0


def run(command: Sequence[str], trainer: Mapping[str, Any], ranks: int, directory: Path, task: str) -> int:
    """Run a command as several ranks to their end and return its exit status, as a shell has it.

    Args:
        command: the command of each rank.
        trainer: `num_nodes`, `rdzv_endpoint` (HOST:PORT of one of them), `max_restarts` after a rank's death, and
            `timeout`, the seconds that nodes wait for each other.
        ranks: their number on this machine.
        directory: of the run.
        task: "train" or "sample".

    Raises:
        ConfigError: for devices that this machine does not have.
    """
    gpus, cores = machine()
    compare_devices(trainer, gpus, cores)  # before each rank imports torch to refuse them

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `report_failure` prints it in one line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    os.environ[AGENT] = str(os.getpid())
    # All other signals are forwarded here: torchelastic would kill ranks that still save.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    if trainer.get("max_restarts"):
        # Otherwise all rounds of ranks share the agent's store, in which restarted ranks find the addresses of dead
        # ones (github.com/pytorch/pytorch/issues/135712).  Now rank 0 of each round opens a store of its own.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with forwarded() as received, TemporaryDirectory(prefix="diffusion_lab_") as logs:
        try:
            launch(command, trainer, ranks, directory.name, logs)
        except ChildFailedError as error:
            return report_failure(error.failures, received, directory, task)
        except RendezvousError as error:
            return report_lost_nodes(error, received, directory, task)
        finally:
            del os.environ[AGENT]
            if (trainer.get("num_nodes") or 1) == 1:  # else ranks of other nodes may still have to read it
                (directory / ".stop").unlink(missing_ok=True)  # of ranks that were ended before they could remove it
    return 0


def launch(command: Sequence[str], trainer: Mapping[str, Any], ranks: int, name: str, logs: str) -> None:
    """Do what torch.distributed.launcher.launch_agent does, with an agent that restarts only ranks that failed.

    Raises:
        ChildFailedError: if a rank failed, or was stopped.
        RendezvousError: if the agents of several nodes do not meet.
    """
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    nodes, endpoint = trainer.get("num_nodes") or 1, trainer.get("rdzv_endpoint")
    handler = get_rendezvous_handler(
        RendezvousParameters(
            *("c10d", endpoint or "127.0.0.1:0", name, nodes, nodes),
            local_addr=None if endpoint else "127.0.0.1",
            join_timeout=trainer.get("timeout") or 600,
        )
    )
    if nodes > 1:
        say(f"waits for {nodes} nodes at {endpoint}")
    try:
        result = agent_class()(
            WorkerSpec(
                *("default", ranks, Tolerant(handler)),
                entrypoint=command[0],
                args=tuple(command[1:]),
                max_restarts=trainer.get("max_restarts") or 0,
            ),
            DefaultLogsSpecs(logs),
        ).run()
    finally:
        handler.shutdown()
    if result.is_failed():
        raise ChildFailedError(command[0], result.failures)


def agent_class() -> type:
    """Return torchelastic's agent, changed so that ranks that were stopped or refused are not restarted.

    A function, because torch is imported late.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if result.is_failed() and final(result.failures):
                raise ChildFailedError("ranks", result.failures)  # ends the agent without a restart
            return result

    return Agent


class Tolerant:
    """A rendezvous that, after the node that hosts it has ended, reports that no further nodes wait to join.

    torchelastic would end this node's ranks at once; they notice the loss themselves, and may have to save first.
    """

    def __init__(self, handler: Any) -> None:
        self._handler, self._lost = handler, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def num_nodes_waiting(self) -> int:
        from torch.distributed.elastic.rendezvous import RendezvousConnectionError

        try:
            return 0 if self._lost else self._handler.num_nodes_waiting()
        except RendezvousConnectionError:
            self._lost = True
            return 0


def final(failures: Mapping[int, Any]) -> bool:
    """Whether ranks would end in the same way if they were restarted: all were stopped, or one was refused."""
    found = [described(rank, failure) for rank, failure in failures.items()]
    return all(stopped(one) for one in found) or any(one["kind"] == "refused" for one in found)


@contextmanager
def forwarded() -> Iterator[list[int]]:
    """Context in which signals that would stop this process go to its ranks instead; yields those received."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        ranks = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        for child in ranks:
            child.send_signal(number)
        if not ranks:
            sys.exit(128 + number)

    with signals_go_to(forward):
        yield received


def report_failure(failures: Mapping[int, Any], received: Sequence[int], directory: Path, task: str) -> int:
    """Print which rank failed first and why, unless a signal stopped them all; return the exit status."""
    found = [described(rank, failure) for rank, failure in failures.items()]
    failed = [one for one in found if not stopped(one)]
    if not failed:
        return 128 + received[0] if received else found[0]["status"]
    first = min(failed, key=lambda one: (KINDS.index(one["kind"]), one["time"]))
    if first["kind"] == "refused" and first["rank"] == 0:
        print(f"error: {first['text']}", file=sys.stderr, flush=True)
    else:
        print(sentence(first, advice(directory, task)), file=sys.stderr, flush=True)
    return first["status"]


def report_lost_nodes(error: Exception, received: Sequence[int], directory: Path, task: str) -> int:
    """Print why the agents of the nodes do not reach each other; return the exit status."""
    if received:
        return 128 + received[0]
    what = {
        "RendezvousClosedError": "another node has ended, its output says why",
        "RendezvousTimeoutError": "not all nodes came within trainer.timeout: check trainer.num_nodes on each",
    }
    why = what.get(type(error).__name__, "no connection to trainer.rdzv_endpoint, or the node there has ended")
    print(f"error: {why}; {advice(directory, task)}", file=sys.stderr, flush=True)
    return 1


def stopped(cause: Mapping[str, Any]) -> bool:
    """Whether a rank ended because a signal stopped it."""
    return cause["status"] in STOPPED and cause["kind"] not in KINDS[:3]


def described(rank: int, failure: Any) -> dict[str, Any]:
    """Describe the failure of a rank: by the rank's own error file if there is one, else by its exit status."""
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
