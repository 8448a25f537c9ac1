"""Handling of SIGTERM, SIGINT (Ctrl-C) and SIGHUP (closed terminal): save a checkpoint, and stop."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl

from diffusion_lab.callback.checkpoint import Checkpoint
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
SIGNALS = tuple(dict.fromkeys((signal.SIGTERM, signal.SIGINT, HANGUP)))
SENT = {signal.SIGTERM, HANGUP}
"""Signals that the first rank passes on as SIGTERM."""

DUPLICATE = 3.0
"""Seconds within which a second signal is a copy: sent to all ranks, and forwarded by the first rank or torchrun."""


LEAVING = 3.0
"""Seconds after which a rank that still waits for ranks that have stopped is ended."""


_active: set[Interrupt] = set()


def _forked() -> None:
    """Restore the default signal handlers in a forked process, such as a worker of a DataLoader."""
    for interrupt in _active:
        interrupt.reset_in_child()


os.register_at_fork(after_in_child=_forked)


def ignored(signum: int) -> bool:
    """Whether a signal is SIGHUP and is ignored, for example under nohup."""
    return signum == HANGUP and signal.getsignal(signum) is signal.SIG_IGN


class Stopped(BaseException):
    """Training was stopped by a signal.  A BaseException, so that no `except Exception` catches it."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")


class Interrupt(OptionalHooks):
    """Saves a checkpoint on SIGTERM, SIGINT or SIGHUP and raises `Stopped`; a second signal stops at once.

    SIGHUP is sent by a closed terminal; it is not handled if it is ignored (nohup).

    The callback must come after those that are part of a step (EMA, logging) and before those that take long.  A single
    process stops at once during images, validation and evaluation, and at the end of a training step.  Several ranks
    stop after the same step: the first that receives the signal writes the step at which to stop to `<run_dir>/.stop`,
    two steps ahead, so that all ranks read it in time.  If the current step is already saved, as before an evaluation,
    that is the step: each rank stops at once, and one that waits for another rank is ended.

    Args:
        run_dir: the run's directory, shared by all ranks.
    """

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir) / ".stop"
        self.received: int | None = None
        self._in_step, self._step, self._since = False, -1, 0.0
        self._raise_again = False
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[int, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.trainer, self.received, self._step = trainer, None, trainer.global_step
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
        # Here, because Lightning installs its own handlers at the start of fit.
        self._before = {n: signal.signal(n, self.receive) for n in SIGNALS if not ignored(n)}
        _active.add(self)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self.silence_stopped
        if trainer.world_size > 1:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup = writer, signal.set_wakeup_fd(writer)
            threading.Thread(target=self.listen, args=(reader,), daemon=True, name="signals").start()
        if trainer.received_sigterm:  # before this callback was active
            raise Stopped(signal.SIGTERM, trainer.global_step)

    def receive(self, signum: int, frame: Any) -> None:
        """Handle a signal, and forward it to the ranks that this process has started."""
        if self._raise_again:
            self._raise_again = False
            raise Stopped(self.received, self.trainer.global_step)
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and "DIFFUSION_LAB_AGENT" not in os.environ
        twice = {self.received, signum} <= SENT or (self.received == signum and under_torchrun)
        if twice and time.monotonic() < self._since + DUPLICATE:
            return
        if self.received is not None and peer_ended():
            return
        if self.received is not None:
            self.restore()
            raise KeyboardInterrupt
        self.received, self._since, trainer = signum, time.monotonic(), self.trainer
        if trainer.is_global_zero and not peer_ended():
            print(f"\n{signal.Signals(signum).name}: saving and stopping; once more stops at once", flush=True)
        alone, saved = trainer.world_size == 1, self.saved()
        if not alone and not self._in_step and saved:
            self.request_stop(trainer.global_step)
        self.forward(signum)
        if not self._in_step and (alone or saved):
            threading.Thread(target=self.raise_again, daemon=True, name="raise_again").start()
            raise Stopped(signum, trainer.global_step)

    def silence_stopped(self, unraisable: Any) -> None:
        """Print no warning about a `Stopped` that Python ignored: `raise_again` repeats it."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)

    def raise_again(self) -> None:
        """In a thread: repeat `Stopped` if Python ignored it, as in the callback of a weak reference."""
        for _ in range(20):
            time.sleep(0.3)
            if not self._before:
                return
            self._raise_again = True
            signal.pthread_kill(threading.main_thread().ident, self.received)

    def forward(self, signum: int) -> None:
        """Send SIGTERM to the ranks that this process has started; a terminal sends its signals to all of them."""
        if hasattr(self.trainer.strategy.launcher, "kill") and signum in SENT:
            self.trainer.strategy.launcher.kill(signal.SIGTERM)

    def listen(self, reader: int) -> None:
        """In a thread: end this process if it cannot handle a signal because it waits for a rank that has stopped.

        It waits outside of Python, where no handler runs.  It is ended only if the current step is saved.
        """
        while (signum := os.read(reader, 1)) and signum[0] not in SIGNALS:
            pass
        time.sleep(1)
        if signum and self.received is None and not self._in_step and self.saved():
            self.request_stop(self.trainer.global_step)
            self.forward(signum[0])
        while signum and self._before:
            if self.saved() and self.requested_step() <= self.trainer.global_step:
                time.sleep(LEAVING)
                if self._before:
                    os._exit(128 + signum[0])
            time.sleep(0.2)
        os.close(reader)

    def saved(self) -> bool:
        """Whether there is a checkpoint of the current step."""
        return any(isinstance(c, Checkpoint) and c.is_saved(self.trainer) for c in self.trainer.callbacks)

    def request_stop(self, step: int) -> None:
        """Write the step after which all ranks stop, unless a rank has done so."""
        temporary = self.path.with_name(f".stop.{self.trainer.global_rank}.{threading.get_ident()}")
        temporary.write_text(str(step))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, self.path)  # atomic, and fails if another rank was first
        temporary.unlink()

    def requested_step(self) -> float:
        """Return the step that a rank has written; infinity if none has."""
        return int(self.path.read_text()) if self.path.exists() else float("inf")

    def on_train_batch_start(self, trainer: pl.Trainer, model: Model, batch: Any, batch_idx: int) -> None:
        self._in_step = True

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._in_step = trainer.global_step == self._step  # gradients are still being accumulated
        if self._in_step:
            return
        self._step = trainer.global_step
        if self._step >= self.stop_step(trainer):
            raise Stopped(self.received or signal.SIGTERM, self._step)

    def stop_step(self, trainer: pl.Trainer) -> float:
        """Return the step after which to stop; infinity if no rank has received a signal."""
        if trainer.world_size == 1:
            return self._step if self.received is not None else float("inf")
        if self.received is not None:
            self.request_stop(self._step + 2)
        return self.requested_step()

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.restore()
        begun = trainer.world_size > 1 and hasattr(self, "trainer")
        stopping = begun and self.saved() and self.requested_step() <= trainer.global_step
        if isinstance(exception, Stopped):
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.save(trainer)  # synchronises the ranks: all have read the file
            if trainer.is_global_zero:
                if stopping:  # ranks that still wait must be able to read the file; on another node, it is left to them
                    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
                        atexit.register(self.path.unlink, missing_ok=True)
                else:
                    self.path.unlink(missing_ok=True)
        elif stopping and isinstance(exception, Exception):  # a rank that this one waited for has stopped
            raise Stopped(self.received or signal.SIGTERM, trainer.global_step) from exception

    def teardown(self, trainer: pl.Trainer, model: Model, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._before:
            sys.unraisablehook = self._unraisable
        self._before = {}
        _active.discard(self)
        if self._wakeup is not None:
            writer, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(writer)  # which ends the thread
            self._wakeup = None

    def reset_in_child(self) -> None:
        """Restore default handlers in a forked process, and detach it from the parent's wakeup pipe."""
        for signum in self._before:
            signal.signal(signum, signal.SIG_DFL)
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)


def peer_ended() -> bool:
    """Whether another rank on this machine has ended; torchelastic then sends SIGTERM to the others, and waits."""
    world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return world > 1 and len(psutil.Process(os.getppid()).children()) < world
