"""When to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.model import Model


class Checkpoint(pl.Callback):
    """Saves `<run_dir>/checkpoints/step_XXXXXXXX.ckpt` every so many optimiser steps and at the end of training.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two checkpoints.
        keep: how many of the newest to keep; null keeps all.
    """

    def __init__(self, run_dir: str, every_n_steps: int = 1000, keep: int | None = 2) -> None:
        self.folder, self.every_n_steps, self.keep = Path(run_dir) / "checkpoints", every_n_steps, keep
        self._saved = -1

    def save(self, trainer: pl.Trainer) -> None:
        """Save the current step, once, then drop what is older than `keep`."""
        if self._saved == trainer.global_step:
            return
        self._saved = trainer.global_step
        for logger in trainer.loggers:  # a log never ends before the checkpoint that goes on from it
            logger.save()
        trainer.save_checkpoint(self.folder / f"step_{trainer.global_step:08d}.ckpt")
        if self.keep and trainer.is_global_zero:
            for old in sorted(self.folder.glob("step_*.ckpt"))[: -self.keep]:
                old.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.save(trainer)
