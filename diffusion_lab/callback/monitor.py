"""Logged values of training: loss, learning rate, gradient norm, images/s, EMA decay, memory."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from diffusion_lab import ranks
from diffusion_lab.callback.ema import EMA
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process, and of its tensors on a GPU, in GB."""
    found = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB on Linux
        found["train/cpu_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    if device.type == "cuda":
        found["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


class Monitor(OptionalHooks):
    """Writes one row of metrics to every logger each `trainer.log_every_n_steps` optimiser steps.

    The loss is the mean since the last row over all ranks; losses stay on the device, so that no step synchronises with
    it.  A checkpoint holds the losses since the last row, so that a resumed run completes the row.
    """

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
        self.losses = [loss.to(model.device) for loss in self.losses]
        self.step, self.time, self.images = trainer.global_step, time.perf_counter(), 0

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        self.images += len(batch[0]) * trainer.world_size
        step = trainer.global_step
        if step == self.step or (step % trainer.log_every_n_steps and step < trainer.max_steps):
            return
        loss = trainer.strategy.reduce(torch.stack(self.losses).mean(), reduce_op="mean")
        now = time.perf_counter()
        row = {
            "train/loss": loss.item() * trainer.accumulate_grad_batches,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_second": self.images / (now - self.time),
        }
        row |= peak_memory(model.device)
        if model.grad_norm is not None:
            row["train/grad_norm"] = float(model.grad_norm)
        if self.ema is not None:
            row["train/ema_decay"] = self.ema.current_decay
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
        self.step, self.time, self.images, self.losses = step, now, 0, []

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = ranks.gather([loss.cpu() for loss in self.losses])

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        kept, before = checkpoint.get("losses", []), (checkpoint.get("config") or {}).get("trainer") or {}
        same = before.get("accumulate_grad_batches", 1) == trainer.accumulate_grad_batches
        self.losses = kept[trainer.global_rank] if same and len(kept) == trainer.world_size else []
