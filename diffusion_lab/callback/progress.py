"""One bar for the whole run."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from diffusion_lab.model import Model


class Progress(ProgressBar):
    """Optimiser steps done, time left, loss and images/s, on one line (or one line now and then if it is no terminal).

    Args:
        refresh_seconds: least time between two updates on a terminal.
    """

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds if sys.stderr.isatty() else max(refresh_seconds, 20.0)
        self.bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.seen, self.first, self.start, self.shown = 0, trainer.global_step, time.perf_counter(), 0.0
        self.bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            disable=not (self._enabled and trainer.is_global_zero),
            unit="step",
            desc="training",
            miniters=0,
            mininterval=0,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += len(batch[0]) * trainer.world_size
        now = time.perf_counter()
        if now - self.shown < self.refresh_seconds and trainer.global_step < trainer.max_steps:
            return
        self.shown = now
        rate = self.seen / (now - self.start)
        self.bar.set_postfix_str(f"loss {outputs['loss'].item():.4f}, {rate:,.0f} images/s", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)
