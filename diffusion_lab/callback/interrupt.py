"""What SIGTERM and Ctrl-C do: save the step that is done, and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback.checkpoint import Checkpoint
from diffusion_lab.model import Model

SIGNALS = (signal.SIGTERM, signal.SIGINT)

ECHO = 3.0
"""Seconds within which torchrun passes on to its ranks what the terminal has sent to all of them already."""


class Stopped(Exception):
    """Training was stopped by a signal, after the step was saved."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")


class Interrupt(pl.Callback):
    """Answers SIGTERM and SIGINT by a checkpoint of the current step, and `Stopped`; a second signal stops at once.

    Comes after the callbacks that belong to a step (EMA, logged numbers) and before those that may take long.  A lone
    process leaves pictures, validation and evaluation at once, and a training step when it is done.  Several ranks stop
    after the same step: the first that is told writes into `<run_dir>/.stop` which one, two steps ahead, so that all
    have read it before they get there.

    Args:
        run_dir: the run's directory, which all ranks see.
    """

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir) / ".stop"
        self.received: int | None = None
        self._in_step, self._step, self._since = False, -1, 0.0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.trainer, self.received, self._step = trainer, None, trainer.global_step
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
        # Here, because Lightning puts its own in place when it begins to fit.
        self._before = {signum: signal.signal(signum, self.receive) for signum in SIGNALS}

    def receive(self, signum: int, frame: Any) -> None:
        """Note a signal, and pass it on to the ranks that this process has started."""
        if self.received == signum and "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._since + ECHO:
            return
        if self.received is not None:
            self.restore()
            raise KeyboardInterrupt
        self.received, self._since, trainer = signum, time.monotonic(), self.trainer
        if trainer.is_global_zero:
            print(f"\n{signal.Signals(signum).name}: saving and stopping; once more stops at once", flush=True)
        if hasattr(trainer.strategy.launcher, "kill") and signum == signal.SIGTERM:
            trainer.strategy.launcher.kill(signum)
        if trainer.world_size == 1 and not self._in_step:
            raise Stopped(signum, trainer.global_step)

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
        if self.received is not None and not self.path.exists():
            own = self.path.with_name(f".stop.{trainer.global_rank}")
            own.write_text(str(self._step + 2))
            with contextlib.suppress(FileExistsError):
                os.link(own, self.path)  # whole, and only one rank's
            own.unlink()
        return int(self.path.read_text()) if self.path.exists() else float("inf")

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.restore()
        if isinstance(exception, Stopped):
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.save(trainer)  # all ranks together: none has the file still to read
            if trainer.is_global_zero:
                self.path.unlink(missing_ok=True)

    def teardown(self, trainer: pl.Trainer, model: Model, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back what answered the signals before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
