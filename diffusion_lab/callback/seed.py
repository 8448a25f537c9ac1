"""Independent random numbers for every rank, continued by a resumed run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from diffusion_lab import noise, ranks
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model
from diffusion_lab.ranges import Seed, checked


class RankSeed(OptionalHooks):
    """Seeds torch with (seed, rank, step) when training starts, or restores the generators' states of a checkpoint.

    With the same seed, all ranks would have the same times and noise.  A checkpoint holds the states of all ranks under
    `random`; on another number of ranks they are ignored.
    """

    @checked
    def __init__(self, seed: Seed = 0) -> None:
        self.seed = seed
        self._states: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        if len(self._states) == trainer.world_size:
            noise.restore(self._states[trainer.global_rank], model.device)
        else:
            sequence = np.random.SeedSequence((self.seed, trainer.global_rank, trainer.global_step))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = ranks.gather(noise.states(model.device))

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get("random", [])
