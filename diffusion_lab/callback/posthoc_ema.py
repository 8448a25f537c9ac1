"""Averages of the parameters from which post-hoc EMA makes those of any other profile; Karras et al. 2024."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from diffusion_lab import power_function
from diffusion_lab.callback.ema import Average, Averaging
from diffusion_lab.data import DataModule
from diffusion_lab.model import Model
from diffusion_lab.ranges import Count, RelativeStd, checked
from diffusion_lab.storage.atomic_file import NotWritten, atomic_write, format_bytes, free_bytes


class PowerFunctionAverage(Average):
    """Average with the power-function profile of relative standard deviation `std`."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std, self.gamma = std, power_function.gamma_of(std)

    def decay_at(self, n: int) -> float:
        return power_function.decay(self.gamma, n)

    def state(self) -> dict[str, Any]:
        return {"std": self.std, **super().state()}


class PostHocEMA(Averaging):
    """Saves power-function averages to `<run_dir>/ema/step_XXXXXXXX.pt` every `every_n_steps` optimiser steps.

    `diffusion-lab ema RUN std=...` combines these snapshots into the average of any other profile (Karras et al. 2024,
    Section 3.2).  A checkpoint holds the averages too, in `posthoc_averages`, so that a resumed run continues them.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two snapshots; None keeps no averages.
        stds: relative standard deviations of the profiles.
    """

    @checked
    def __init__(
        self, run_dir: str, every_n_steps: Count | None = None, stds: Sequence[RelativeStd] = (0.05, 0.1)
    ) -> None:
        self.folder, self.every_n_steps = Path(run_dir) / "ema", every_n_steps
        self.averages = [PowerFunctionAverage(std) for std in stds] if every_n_steps else []
        if not self.averages:
            self.on_train_batch_end = None

    @property
    def updates(self) -> int:
        """Number of updates of the averages."""
        return self.averages[0].updates if self.averages else 0

    def check(self, data: DataModule, model: Model) -> None:
        """Raise `NotWritten` if there is no room for a single snapshot."""
        size = len(self.averages) * sum(4 * p.numel() for p in model.network.parameters())
        free = free_bytes(self.folder)
        if free is not None and free < size:
            message = f"a snapshot needs {format_bytes(size)}, {format_bytes(free)} are free"
            raise NotWritten(errno.ENOSPC, f"{self.folder}: {message}: set callback.posthoc_ema.every_n_steps=null")

    def check_resumed(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if a checkpoint lacks one of the averages, which begin with the training."""
        stored = [state["std"] for state in checkpoint.get("posthoc_averages", ())]
        if missing := [f"{average.std:g}" for average in self.averages if average.std not in stored]:
            kept = f"stds=[{','.join(map(str, stored))}]" if stored else "every_n_steps=null"
            raise ValueError(
                f"the checkpoint holds no power-function average of std {', '.join(missing)}, which begins with the "
                f"training: set callback.posthoc_ema.{kept}, or train a new run"
            )

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        super().on_train_start(trainer, model)
        if trainer.is_global_zero:  # those of later steps belong to another continuation
            for path in self.folder.glob("step_*.pt") if self.averages else ():
                if int(path.stem[5:]) > self.updates:
                    path.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        before = self.updates
        super().on_train_batch_end(trainer, model, outputs, batch, batch_idx)
        if self.updates != before and self.updates % self.every_n_steps == 0:
            states = [average.state() for average in self.averages]
            if trainer.is_global_zero:
                with atomic_write(self.folder / f"step_{self.updates:08d}.pt") as file:
                    torch.save(states, file)

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        if self.averages:
            checkpoint["posthoc_averages"] = [average.state() for average in self.averages]

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        states = {state["std"]: state for state in checkpoint.get("posthoc_averages", ())}
        for average in self.averages:
            if average.std in states:
                average.load(states[average.std], model.network)
