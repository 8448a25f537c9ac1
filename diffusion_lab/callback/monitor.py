"""What is logged while training: loss, learning rate, gradient norm, images/s, EMA decay."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from diffusion_lab.callback.ema import EMA
from diffusion_lab.model import Model


class Monitor(pl.Callback):
    """Writes one row of metrics to every logger each `trainer.log_every_n_steps` optimiser steps.

    The loss is the mean since the last row; it stays on the device until then, so that no step waits for it.
    """

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
        self._reset(trainer)

    def _reset(self, trainer: pl.Trainer) -> None:
        self.step, self.time = trainer.global_step, time.perf_counter()
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        steps = trainer.global_step - self.step
        if steps < trainer.log_every_n_steps and trainer.global_step < trainer.max_steps:
            return
        row = {
            "train/loss": torch.stack(self.losses).mean().item() * trainer.accumulate_grad_batches,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_second": len(self.losses)
            * len(batch[0])
            * trainer.world_size
            / (time.perf_counter() - self.time),
        }
        if model.grad_norm is not None:
            row["train/grad_norm"] = float(model.grad_norm)
        if self.ema is not None:
            row["train/ema_decay"] = self.ema.current_decay
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        self._reset(trainer)
