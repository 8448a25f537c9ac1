"""When one rank of a job fails or hangs: all of them end, and one line says which it was, why, and how to go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lab.config.environment import cluster_ranks, of_another_rank
from diffusion_lab.config.origin import advice
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import notes, process
from diffusion_lab.launch.cluster import STARTER
from diffusion_lab.launch.job import record_error
from diffusion_lab.launch.notes import Notes, chain, ended, first_of, is_lost, name, sentence

__all__ = ["advice", "born", "last_line", "watched"]

RANKS = "DIFFUSION_LAB_RANKS"
"""Environment variable that tells the ranks that a first rank starts their folder."""

PATIENCE = 10.0
"""Seconds in which a rank must come out of what it does after another has failed; then it is ended."""

SETTLING = 5.0
"""Seconds for which a rank that has lost contact waits for the news of a failure that explains it."""

STOPPED = (None, 0, *(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
"""Exit statuses of a rank that has not failed: at work, done, stopped by a signal that came to all."""

_line: list[str] = []


def born() -> None:
    """In a rank that our first rank has started: die with it (a collective save is no longer possible)."""
    if of_another_rank() and RANKS in os.environ:
        process.prctl(process.DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != first_of(Path(os.environ[RANKS])):
            os._exit(1)


@contextlib.contextmanager
def watched(directory: Path, task: str) -> Iterator[Watch]:
    """Around the work of one rank of a job in `directory`; nothing at all if it is the only one.

    Raises:
        SystemExit: on a rank that only suffers from the failure of another, instead of its own error.
    """
    watch = Watch(directory, task)
    before = os.environ.get(RANKS)
    os.environ[RANKS] = str(watch.folder)
    try:
        yield watch
        watch.wait(process.GRACE)
        watch.end(watch.cause())
    except Exception as error:
        watch.fail(error)
        raise
    except BaseException as error:
        if isinstance(error, SystemExit):  # a deliberate end, of all ranks
            watch.wait(process.GRACE)
            watch.stay()
        raise
    finally:
        watch.leave()
        os.environ.pop(RANKS) if before is None else os.environ.update({RANKS: before})


def last_line() -> None:
    """Say at the very end, below all tracebacks, which rank it was."""
    while _line:
        print(_line.pop(), file=sys.stderr, flush=True)


class Watch:
    """What one rank knows of the others, and does when one of them fails.

    Args:
        directory: of the job; a folder for its ranks is made in it as soon as there are several.
        task: "train" or "sample".
    """

    def __init__(self, directory: Path, task: str) -> None:
        self.directory, self.task = directory, task
        self.started, self.cluster_ranks = of_another_rank() and RANKS in os.environ, cluster_ranks()[2] > 1
        self.rank = cluster_ranks()[1] if self.cluster_ranks else int(os.environ.get("LOCAL_RANK", 0))
        self.children: list[subprocess.Popen[bytes]] = []
        self.over, self.lock, self.author, self.left, self.pipe = threading.Event(), threading.Lock(), False, False, -1
        own = os.environ.get(STARTER, "") if self.cluster_ranks else str(os.getpid())
        self.folder = Path(os.environ[RANKS]) if self.started else directory / f".ranks_{os.uname().nodename}_{own}"
        self.notes = Notes(self.folder)
        if self.started or self.cluster_ranks:
            self.begin()

    # --- beginning

    def begin(self) -> None:
        """Tell the others that this rank works, and look after them from now on."""
        for left in self.folder.parent.glob(f".ranks_{os.uname().nodename}_*") if self.rank == 0 else ():
            if not process.status(first_of(left))[0]:  # of a job whose ranks were all killed
                shutil.rmtree(left, ignore_errors=True)
        self.notes.write(f"rank_{self.rank}", {"rank": self.rank, "pid": os.getpid()})
        threading.Thread(target=self.look, daemon=True, name="other-ranks").start()

    def guard(self, children: list[subprocess.Popen[bytes]]) -> None:
        """On the first rank: look after those that it has just started; takes the place of Lightning's observer."""
        if not children:
            return
        self.children = children
        self.begin()
        reader, self.pipe = os.pipe()
        # If this process is killed, its end of the pipe is closed: the only one who can still say so is another.
        words = [sys.executable, "-m", notes.__name__, str(self.folder), str(self.directory), self.task]
        script = "trap '' HUP INT TERM; read _ || exec \"$@\""
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        subprocess.Popen(["sh", "-c", script, "sh", *words], stdin=reader, env={**os.environ, "PYTHONPATH": path})
        os.close(reader)

    # --- what ranks tell one another

    def cause(self) -> dict[str, Any] | None:
        """The first failure of the job, if there is one."""
        with self.lock:
            if self.left or (known := self.notes.read("cause")) is not None:
                return None if self.left else known
            out = self.notes.of("done", "lost")
            for rank, child in enumerate(self.children, 1):
                if child.poll() not in STOPPED and rank not in out:
                    return self.claim(rank, child.pid, *ended(child.returncode))
            for rank, pid in self.notes.of("rank").items() if self.cluster_ranks else ():
                if not process.status(pid)[0] and (self.folder / f"rank_{rank}").exists():
                    return self.claim(rank, pid, "is gone (killed? out of memory?)", 1)
        return None

    def claim(self, rank: int, pid: int, message: str, status: int) -> dict[str, Any]:
        """Say that this is the cause of all; what then is, for another may have been faster."""
        own = {"rank": rank, "pid": pid, "told": message, "status": status}
        if not self.notes.write("cause", own):
            return self.notes.read("cause") or own
        self.author = True
        if pid != os.getpid():  # who fails by an error tells that himself
            record_error(f"{name(own)} {message}")
        return own

    # --- ending

    def look(self) -> None:
        """In a thread: end this process if it does not come out of its work after a failure of another."""
        while not self.over.wait(0.2):
            cause = self.cause()
            if cause is not None:
                if not self.over.wait(PATIENCE):
                    self.end(cause, at_once=True)
                return
            if self.started and os.getppid() != first_of(self.folder):  # where there is no prctl
                os._exit(1)

    def fail(self, error: Exception) -> None:
        """Find out whose failure an error is, and leave with that one's exit status if it is another's."""
        if not (self.children or self.started or self.cluster_ranks):
            return
        refused = isinstance(error, ConfigError)
        if is_lost(error):
            self.notes.become(self.rank, "lost")
            end, cause = time.monotonic() + SETTLING, self.cause()
            while cause is None and time.monotonic() < end:
                time.sleep(0.1)
                cause = self.cause()
            cause = cause or self.blame(error)
        else:
            what = str(error) if refused else f"failed: {type(error).__name__}: {error}"
            cause = self.claim(self.rank, os.getpid(), " ".join(what.split())[:500], getattr(error, "status", 1))
        if cause["pid"] != os.getpid() or (refused and self.started):
            self.end(cause)
        elif not refused and not self.started:
            _line.append(sentence(cause, self.directory, self.task))

    def blame(self, error: Exception) -> dict[str, Any]:
        """The cause where no rank has told one: those who neither left nor waited as this one did."""
        working = {rank: child.pid for rank, child in enumerate(self.children, 1)} | self.notes.of("rank")
        gone = {self.rank, *self.notes.of("lost", "done")}
        silent = {r: pid for r, pid in working.items() if r not in gone and process.status(pid)[0]}
        stopped = {rank: pid for rank, pid in silent.items() if process.status(pid)[0] == "T"}
        silent = stopped or silent
        if not silent or not any("timed out" in str(e).lower() for e in chain(error)):
            return self.claim(self.rank, os.getpid(), f"lost contact with the others: {str(error).splitlines()[0]}", 1)
        ranks = ", ".join(f"rank {rank} (process {pid})" for rank, pid in silent.items())
        message = f"did not answer within trainer.timeout{', it is stopped' if stopped else ''}"
        rank, pid = next(iter(silent.items()))
        cause = self.claim(rank, pid, message if len(silent) == 1 else f"and others {message}: {ranks}", 1)
        for pid in silent.values():  # what is stopped answers to nothing else
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return cause

    def end(self, cause: dict[str, Any] | None, at_once: bool = False) -> None:
        """Leave with the status of the cause, and say what it is, where this rank is the one to do so."""
        if cause is None:
            return
        if not self.started and (self.children or self.author or cause["pid"] == os.getpid()):
            _line.append(sentence(cause, self.directory, self.task))
        if not at_once:
            sys.exit(cause["status"])
        self.leave()
        last_line()
        sys.stdout.flush()
        os._exit(cause["status"])

    def wait(self, seconds: float) -> None:
        """Wait for the ranks that this one has started, at most for some seconds; nobody need come out of anything."""
        self.over.set()
        until = time.monotonic() + seconds
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))

    def stay(self) -> None:
        """Under torchrun or srun, which end all ranks as soon as one has: do not end before the first rank has."""
        begin, here = time.monotonic(), 0 in self.notes.of("rank")
        while self.cluster_ranks and self.rank and time.monotonic() < begin + (process.GRACE if here else SETTLING):
            if here and 0 not in self.notes.of("rank"):
                return
            time.sleep(0.1)

    def leave(self) -> None:
        """End the ranks that this one has started, and its own part; the last one removes the folder."""
        self.over.set()
        cause = self.notes.read("cause")
        for rank, child in enumerate(self.children, 1):
            if cause is None or cause["rank"] != rank or child.poll() is not None:
                child.kill()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(SETTLING)  # the one that failed may still be telling why
            child.kill()
            child.wait()
        if self.pipe >= 0:
            os.write(self.pipe, b"\n")
            os.close(self.pipe)
            self.pipe = -1
        with self.lock:
            self.left = True
        self.notes.become(self.rank, "done")
        others = {*self.notes.of("rank", "lost").values()} - {os.getpid()}
        if not any(process.status(pid)[0] for pid in others):
            shutil.rmtree(self.folder, ignore_errors=True)
        if cause is not None:  # what is left, such as closing a connection, may wait for those who are gone
            deadline = threading.Timer(PATIENCE, os._exit, (cause["status"],))
            deadline.daemon = True
            deadline.start()
