"""What SIGTERM, Ctrl-C and a closed terminal do: save the step that is done, and stop."""

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

ECHO = 3.0
"""Seconds within which a signal comes twice: sent to all ranks, and passed on by the first one or by torchrun."""


LEAVING = 3.0
"""Seconds in which a rank that others have left must come out of waiting for them."""


_answering: set[Interrupt] = set()


def _forked() -> None:
    """In what is forked from a process that trains, such as a worker of a data loader: let signals do what they do."""
    for interrupt in _answering:
        interrupt.disown()


os.register_at_fork(after_in_child=_forked)


def ignored(signum: int) -> bool:
    """Whether a signal is SIGHUP and nohup, or another parent, has had it ignored."""
    return signum == HANGUP and signal.getsignal(signum) is signal.SIG_IGN


class Stopped(BaseException):
    """Training was stopped by a signal, after the step was saved; nothing on the way answers it as an error."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")


class Interrupt(OptionalHooks):
    """Answers a signal by a checkpoint of the current step, and `Stopped`; a second signal stops at once.

    Signals are SIGTERM, SIGINT and, unless nohup has had it ignored, SIGHUP, which a closed terminal sends.

    Comes after the callbacks that belong to a step (EMA, logged numbers) and before those that may take long.  A lone
    process leaves pictures, validation and evaluation at once, and a training step when it is done.  Several ranks stop
    after the same step: the first that is told writes into `<run_dir>/.stop` which one, two steps ahead, so that all
    have read it before they get there.  Where the present step is saved already, as it is before an evaluation, they
    need not agree on more: it is that one, each leaves at once, and one that waits for another is ended.

    Args:
        run_dir: the run's directory, which all ranks see.
    """

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir) / ".stop"
        self.received: int | None = None
        self._in_step, self._step, self._since = False, -1, 0.0
        self._insisting = False
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[int, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.trainer, self.received, self._step = trainer, None, trainer.global_step
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
        # Here, because Lightning puts its own in place when it begins to fit.
        self._before = {n: signal.signal(n, self.receive) for n in SIGNALS if not ignored(n)}
        _answering.add(self)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self.ignored_by_python
        if trainer.world_size > 1:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup = writer, signal.set_wakeup_fd(writer)
            threading.Thread(target=self.listen, args=(reader,), daemon=True, name="signals").start()
        if trainer.received_sigterm:  # since the run began, and Lightning has noted it
            raise Stopped(signal.SIGTERM, trainer.global_step)

    def receive(self, signum: int, frame: Any) -> None:
        """Note a signal, and pass it on to the ranks that this process has started."""
        if self._insisting:
            self._insisting = False
            raise Stopped(self.received, self.trainer.global_step)
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and "DIFFUSION_LAB_AGENT" not in os.environ
        twice = {self.received, signum} <= SENT or (self.received == signum and under_torchrun)
        if twice and time.monotonic() < self._since + ECHO:
            return
        if self.received is not None and closing():
            return
        if self.received is not None:
            self.restore()
            raise KeyboardInterrupt
        self.received, self._since, trainer = signum, time.monotonic(), self.trainer
        if trainer.is_global_zero:
            print(f"\n{signal.Signals(signum).name}: saving and stopping; once more stops at once", flush=True)
        alone, saved = trainer.world_size == 1, self.saved()
        if not alone and not self._in_step and saved:
            self.note(trainer.global_step)
        self.pass_on(signum)
        if not self._in_step and (alone or saved):
            threading.Thread(target=self.insist, daemon=True, name="insist").start()
            raise Stopped(signum, trainer.global_step)

    def ignored_by_python(self, unraisable: Any) -> None:
        """Say nothing of a `Stopped` that `insist` raises again."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)

    def insist(self) -> None:
        """In a thread: raise again what Python has ignored, as it does in the callback of a weak reference."""
        for _ in range(20):
            time.sleep(0.3)
            if not self._before:
                return
            self._insisting = True
            signal.pthread_kill(threading.main_thread().ident, self.received)

    def pass_on(self, signum: int) -> None:
        """Send SIGTERM to the ranks that this process has started; what a terminal sends they get themselves."""
        if hasattr(self.trainer.strategy.launcher, "kill") and signum in SENT:
            self.trainer.strategy.launcher.kill(signal.SIGTERM)

    def listen(self, reader: int) -> None:
        """In a thread: end this process for a signal that it cannot answer, because it waits for a rank that has left.

        Only where nothing is lost by it.  The waiting is not Python's, so that no handler runs in it.
        """
        while (signum := os.read(reader, 1)) and signum[0] not in SIGNALS:
            pass
        time.sleep(1)
        if signum and self.received is None and not self._in_step and self.saved():
            self.note(self.trainer.global_step)
            self.pass_on(signum[0])
        while signum and self._before:
            if self.saved() and self.noted() <= self.trainer.global_step:
                time.sleep(LEAVING)
                if self._before:
                    os._exit(128 + signum[0])
            time.sleep(0.2)
        os.close(reader)

    def saved(self) -> bool:
        """Whether there is a checkpoint of the present step."""
        return any(isinstance(c, Checkpoint) and c.is_saved(self.trainer) for c in self.trainer.callbacks)

    def note(self, step: int) -> None:
        """Tell all ranks after which step to stop, unless one has done so."""
        own = self.path.with_name(f".stop.{self.trainer.global_rank}.{threading.get_ident()}")
        own.write_text(str(step))
        with contextlib.suppress(FileExistsError):
            os.link(own, self.path)  # whole, and only one rank's
        own.unlink()

    def noted(self) -> float:
        """The step after which to stop; infinity if nobody was told to."""
        return int(self.path.read_text()) if self.path.exists() else float("inf")

    def on_train_batch_start(self, trainer: pl.Trainer, model: Model, batch: Any, batch_idx: int) -> None:
        self._in_step = True

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._in_step = trainer.global_step == self._step  # gradients are still being accumulated
        if self._in_step:
            return
        self._step = trainer.global_step
        if self._step >= self.agreed(trainer):
            raise Stopped(self.received or signal.SIGTERM, self._step)

    def agreed(self, trainer: pl.Trainer) -> float:
        """The step after which to stop; infinity if nobody was told to."""
        if trainer.world_size == 1:
            return self._step if self.received is not None else float("inf")
        if self.received is not None:
            self.note(self._step + 2)
        return self.noted()

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.restore()
        begun = trainer.world_size > 1 and hasattr(self, "trainer")
        left = begun and self.saved() and self.noted() <= trainer.global_step
        if isinstance(exception, Stopped):
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.save(trainer)  # all ranks together: none has the file still to read
            if trainer.is_global_zero:
                if left:  # those who still wait must see that it is over
                    atexit.register(self.path.unlink, missing_ok=True)
                else:
                    self.path.unlink(missing_ok=True)
        elif left and isinstance(exception, Exception):  # what was waited for has stopped
            raise Stopped(self.received or signal.SIGTERM, trainer.global_step) from exception

    def teardown(self, trainer: pl.Trainer, model: Model, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back what answered the signals before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._before:
            sys.unraisablehook = self._unraisable
        self._before = {}
        _answering.discard(self)
        if self._wakeup is not None:
            writer, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(writer)  # which ends the thread
            self._wakeup = None

    def disown(self) -> None:
        """Leave signals to their defaults, and to the process that this one was forked from what it listens to."""
        for signum in self._before:
            signal.signal(signum, signal.SIG_DFL)
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)


def closing() -> bool:
    """Whether another rank on this machine has ended, for which torchelastic sends SIGTERM to the rest, and waits."""
    world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return world > 1 and len(psutil.Process(os.getppid()).children()) < world
