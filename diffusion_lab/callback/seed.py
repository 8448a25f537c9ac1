"""Own random numbers for every rank."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch

from diffusion_lab.model import Model


class RankSeed(pl.Callback):
    """Seeds torch with (seed, rank, step) when training starts.

    One seed on all ranks would give all of them the same times and noise.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        words = np.random.SeedSequence((self.seed, trainer.global_rank, trainer.global_step))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
