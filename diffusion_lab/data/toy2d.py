"""Samples of a known two-dimensional distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory, generator
from diffusion_lab.data.toy2d_density import TARGETS, Toy2dDensity, nearest_mode
from diffusion_lab.ranges import Count, Levels


@dataclass(kw_only=True, eq=False)
class Toy2D(DataModule):
    """A fixed set of samples of `target`, whose density and score, clean and noised, are exact (toy2d_density.py).

    The samples do not depend on `seed`. The label is the nearest mode, or 0 for the two curves.
    """

    name: Literal["eight_gaussians", "moons", "checkerboard", "swiss_roll", "two_modes"] = "eight_gaussians"
    train_size: Count = 50_000
    held_out_size: Count = 10_000
    shape: tuple[Count, ...] = (2,)
    grey_levels: Levels | None = None
    batch_size: Count = 512
    eval_batch_size: Count = 10_000
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target: Toy2dDensity = TARGETS[self.name]()

    def load(self) -> Splits:
        train, held_out = (
            self._labelled(self.target.sample(size, generator(f"{self.name} {part}")))
            for part, size in (("train", self.train_size), ("held out", self.held_out_size))
        )
        return Splits(train, held_out, f"two fixed sets of samples of {self.name}")

    def _labelled(self, points: Tensor) -> InMemory:
        if self.target.modes is None:
            return InMemory(points, torch.zeros(len(points)))
        return InMemory(points, nearest_mode(points, self.target.modes))
