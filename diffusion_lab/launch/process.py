"""The processes that a command starts, its ranks and a sweep's jobs: their command lines, and how jobs end."""

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
"""Overrides of Hydra's own that belong to the process which got them, and are replaced in those that it starts."""

PARENT_DEATH_SIGNAL = 1  # of Linux' prctl

GRACE = 30.0
"""Seconds that the other ranks of a job may live on after its first."""


def program(words: Sequence[str]) -> list[str]:
    """The command line that starts this program again, `words` being its arguments, without the overrides."""
    import __main__

    spec = __main__.__spec__
    script = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    return [sys.executable, *script, *options(words)]


def command(start: Sequence[str], hydra: Any, *more: str, subdir: str | None = None) -> list[str]:
    """The command line of a process that works on the job of the configuration node `hydra`, in its directory."""
    # Unresolved: an override may hold an interpolation, which means something only in the whole configuration.
    own, task = (OmegaConf.to_container(hydra.overrides[kind], resolve=False) for kind in ("hydra", "task"))
    kept = [word for word in own if not word.lstrip("+~").startswith((*SWEEPING, *PLACING))]
    place = [override("hydra.run.dir", hydra.runtime.output_dir), f"hydra.output_subdir={subdir or 'null'}"]
    return [*start, *task, *more, *kept, "hydra.mode=RUN", *place]


def run(words: Sequence[str], environment: Mapping[str, str], cwd: str) -> tuple[int, int | None]:
    """Run a command to its end, and to that of all processes it left: (exit status, signal that came meanwhile).

    It has a process group of its own, to which SIGINT, SIGTERM and SIGHUP are passed on (see `send`); what of the group
    is left `GRACE` seconds after the end is killed.  The status is that of a shell: 128 + number of a deadly signal.
    """
    came: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: Any) -> None:
        came.append(number)
        if process is not None:
            send(process.pid, number)

    with signals_go_to(pass_on):
        process = subprocess.Popen(words, env=environment, cwd=cwd, start_new_session=True, stdin=subprocess.DEVNULL)
        for number in came:
            send(process.pid, number)
        status = process.wait()
        clear(process.pid)
    return (128 - status if status < 0 else status), (came[0] if came else None)


@contextlib.contextmanager
def signals_go_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within, SIGINT, SIGTERM and (unless nohup ignores it) SIGHUP call a handler, if this is the main thread."""
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


def clear(group: int, seconds: float | None = None) -> None:
    """Wait until no process of a group is left; kill what there is after some seconds (`GRACE`)."""
    end = time.monotonic() + (GRACE if seconds is None else seconds)
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
    """Pass a signal on as it would come to a job without a sweep: SIGTERM to its first process, which tells the others.

    What a terminal sends goes to all of them.  No process gets one twice: a second would stop it at once, unsaved.
    """
    if number != signal.SIGTERM:
        _signal(group, number)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(group, number)


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there was one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, where only the dead are left
        return False
    return True


def die_with_parent(number: int) -> None:
    """Have Linux send this process a signal when its parent ends, however that ends."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number, 0, 0, 0)
