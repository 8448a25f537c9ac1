"""Own random numbers for every rank, which a resumed run goes on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from diffusion_lab import ranks
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model


class RankSeed(OptionalHooks):
    """Seeds torch with (seed, rank, step) when training starts, or goes on with the generators' states of a checkpoint.

    One seed on all ranks would give all of them the same times and noise.  A checkpoint holds the states of every rank
    under `random`; on another number of ranks they mean nothing, and each is seeded anew.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._states: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        if len(self._states) == trainer.world_size:
            restore(self._states[trainer.global_rank], model.device)
        else:
            words = np.random.SeedSequence((self.seed, trainer.global_rank, trainer.global_step))
            torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = ranks.gather(states(model.device))

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get("random", [])


def states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the generators that training draws from: torch's on the CPU and on the device."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(found: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators into the states that `states` found."""
    torch.set_rng_state(found["cpu"].cpu())
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"].cpu(), device)
