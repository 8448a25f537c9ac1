"""The processes that a run starts: the command lines of other ranks and of a sweep's jobs, and how they end."""

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
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from diffusion_lab.config.command_line import options, override

SWEEPING = ("hydra.mode", "hydra.sweep.", "hydra/sweeper", "hydra.sweeper", "hydra/launcher", "hydra.launcher")
PLACING = ("hydra.run.dir", "hydra.output_subdir", "hydra.job.name")
"""Overrides of Hydra's own that belong to the process which got them, and are replaced in those that it starts."""

GRACE = 30.0
"""Seconds that the other ranks of a job may live on after its first."""


PROC = Path("/proc")
DEATH_SIGNAL, SUBREAPER = 1, 36  # of Linux' prctl


def status(pid: int) -> tuple[str, int]:
    """(letter of its state, when it began in ticks since the machine did) of a process; ("", 0) if it has ended."""
    try:
        if PROC.is_dir():
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            return ("", 0) if fields[0] in "ZX" else (fields[0], int(fields[19]))
        os.kill(pid, 0)
    except OSError:
        return "", 0
    return "R", 0


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


@contextlib.contextmanager
def ranks_of_this_job(start: Sequence[str], guard: Callable[[list[subprocess.Popen[bytes]]], None]) -> Iterator[None]:
    """Within, Lightning's Trainer and Fabric start the other ranks by the `command` of this job, and `guard` them.

    Both ask functions of their module `subprocess_script`.  One repeats `sys.argv`: the whole sweep, if that holds one,
    and a directory with a quote in it does not survive.  The other kills every rank, the asking one included, without
    a word.  Lightning has no hook for either, so the functions are replaced, here and nowhere else, and put back.
    """
    from lightning_fabric.strategies.launchers import subprocess_script as fabric
    from pytorch_lightning.strategies.launchers import subprocess_script as trainer

    def of_rank(local_rank: int) -> tuple[list[str], str]:
        hydra = HydraConfig.get()
        return command(start, hydra, f"hydra.job.name={hydra.job.name}_rank_{local_rank}"), hydra.runtime.cwd

    ours = {"_hydra_subprocess_cmd": of_rank, "_launch_process_observer": guard}
    # Fails where Lightning renamed one.
    before = [(module, name, getattr(module, name)) for module in (fabric, trainer) for name in ours]
    try:
        for module, name, _ in before:
            setattr(module, name, ours[name])
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


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

    prctl(SUBREAPER, 1)  # ranks whose first rank is gone become our children: nobody else might ever wait for them
    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a handler would undo nohup in the job, too
        handled.append(signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in handled} if main else {}
    try:
        process = subprocess.Popen(words, env=environment, cwd=cwd, start_new_session=True, stdin=subprocess.DEVNULL)
        for number in came:
            send(process.pid, number)
        status = process.wait()
        clear(process.pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (128 - status if status < 0 else status), (came[0] if came else None)


def clear(group: int, seconds: float | None = None) -> None:
    """Wait until no process of a group is left; kill what there is after some seconds (`GRACE`)."""
    end = time.monotonic() + (GRACE if seconds is None else seconds)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
        late = time.monotonic() - end
        if not _signal(group, signal.SIGKILL if late > 0 else 0) or late > 10:
            return
        time.sleep(0.05)


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


def prctl(option: int, value: int) -> None:
    """Linux' prctl, where there is one."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
