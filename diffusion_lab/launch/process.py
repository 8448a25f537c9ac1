"""Processes that a command starts (ranks, and jobs of a sweep): their command lines, signals and end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil
from omegaconf import OmegaConf

from diffusion_lab.config.command_line import options, override

SWEEPING = ("hydra.mode", "hydra.sweep.", "hydra/sweeper", "hydra.sweeper", "hydra/launcher", "hydra.launcher")
PLACING = ("hydra.run.dir", "hydra.output_subdir", "hydra.job.name")
"""Overrides of Hydra that are not passed to started processes, which get their own values."""

PARENT_DEATH_SIGNAL = 1  # of Linux' prctl

GRACE = 30.0
"""Seconds for which the other processes of a job may outlive its first."""


def program(words: Sequence[str]) -> list[str]:
    """Return the command line that starts this program again, with the options but without the overrides of `words`."""
    import __main__

    spec = __main__.__spec__
    script = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    return [sys.executable, *script, *options(words)]


def command(start: Sequence[str], hydra: Any, *more: str, subdir: str | None = None) -> list[str]:
    """Return the command line of a process for the run of the configuration node `hydra`, in its directory."""
    # Unresolved: an override may hold an interpolation, which means something only in the whole configuration.
    own, task = (OmegaConf.to_container(hydra.overrides[kind], resolve=False) for kind in ("hydra", "task"))
    kept = [word for word in own if not word.lstrip("+~").startswith((*SWEEPING, *PLACING))]
    place = [override("hydra.run.dir", hydra.runtime.output_dir), f"hydra.output_subdir={subdir or 'null'}"]
    return [*start, *task, *more, *kept, "hydra.mode=RUN", *place]


def run(words: Sequence[str], environment: Mapping[str, str], cwd: str) -> tuple[int, int | None]:
    """Run a command and wait for all of its processes: (exit status, signal received meanwhile or None).

    SIGINT, SIGTERM and SIGHUP are forwarded to its process group (see `send`); processes that are left `GRACE` seconds
    after its end are killed.  The status is that of a shell: 128 + number if a signal killed it.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: Any) -> None:
        received.append(number)
        if process is not None:
            send(process.pid, number)

    with signals_go_to(forward):
        process = subprocess.Popen(words, env=environment, cwd=cwd, start_new_session=True, stdin=subprocess.DEVNULL)
        for number in received:
            send(process.pid, number)
        status = process.wait()
        clear(process.pid)
    return (128 - status if status < 0 else status), (received[0] if received else None)


@contextlib.contextmanager
def signals_go_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Context in which SIGINT, SIGTERM and (unless nohup ignores it) SIGHUP call a handler, in the main thread."""
    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a handler would undo nohup in the job, too
        handled.append(signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in handled} if main else {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def clear(group: int) -> None:
    """Wait until no process of a group is left; kill those that are left after `GRACE` seconds."""
    end = time.monotonic() + GRACE
    while left := [one for one in psutil.process_iter() if in_group(one, group)]:
        late = time.monotonic() - end
        for one in left if late > 0 else ():
            with contextlib.suppress(psutil.Error):
                one.kill()
        if late > 10:
            return
        time.sleep(0.05)


def in_group(process: psutil.Process, group: int) -> bool:
    """Whether a process lives and belongs to a process group."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def send(group: int, number: int) -> None:
    """Send a job a signal as without a sweep: SIGTERM to its first process, which forwards it; others to the group.

    No process may get a signal twice: a second one stops it at once, without saving.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, of a group of zombies
        (os.kill if number == signal.SIGTERM else os.killpg)(group, number)


def die_with_parent(number: int) -> None:
    """Have Linux send this process a signal when its parent ends, however that ends."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number, 0, 0, 0)
