"""The page of a run, updated while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Training


class Page(OptionalHooks):
    """Calls `write` after each image of samples and each evaluation, in a thread, so that training does not wait.

    The last callback, after those that write what the page shows.  If the page before is still being written, the next
    one is left out.

    Args:
        write: writes the page; on rank 0 only.
        every: intervals in optimiser steps.
    """

    def __init__(self, write: Callable[[], None], every: Sequence[int]) -> None:
        self.write, self.every = write, every
        self._written, self._thread = 0, threading.Thread()

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = any(step % every == 0 for every in self.every) and self._written != step < trainer.max_steps
        if due and trainer.is_global_zero and not self._thread.is_alive():
            self._written = step
            self._save(trainer)
            self._thread = threading.Thread(target=self.write, daemon=True)
            self._thread.start()

    def write_last(self, trainer: pl.Trainer) -> None:
        """Write the page of a run that ends."""
        if self._thread.is_alive():
            self._thread.join()
        self._save(trainer)
        self.write()

    @staticmethod
    def _save(trainer: pl.Trainer) -> None:
        """Flush the loggers to their files, from which the page is made."""
        for logger in trainer.loggers:
            logger.save()
