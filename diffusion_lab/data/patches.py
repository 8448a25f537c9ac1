"""Small colour crops of the two photographs included in scikit-learn: natural images without a download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory, generator
from diffusion_lab.ranges import Count, Levels

TRAIN_COLUMNS = 512  # of 640: the left 80 % of both photographs


@dataclass(kw_only=True, eq=False)
class Patches(DataModule):
    """Distinct random crops (3, H, W) of china.jpg and flower.jpg (427 x 640); the label is the photograph, 0 or 1.

    Training crops come from the left 512 columns, held-out crops from the right 128, so that they share no pixel. The
    crops do not depend on `seed`. Raises ValueError if a crop is too large, or for more crops than exist.
    """

    train_size: Count = 10_000
    held_out_size: Count = 2_000
    shape: tuple[Count, ...] = (3, 32, 32)
    grey_levels: Levels | None = 256

    class_names = ("china", "flower")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_image or self.shape[0] != 3 or max(self.shape[1:]) > 128:
            raise ValueError(f"data.shape={list(self.shape)} must be [3,height,width], sides of at most 128")

    def load(self) -> Splits:
        from sklearn.datasets import load_sample_images

        photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
        train = self._crops(photos[..., :TRAIN_COLUMNS], self.train_size, "train")
        held_out = self._crops(photos[..., TRAIN_COLUMNS:], self.held_out_size, "held_out")
        return Splits(train, held_out, f"columns before and from {TRAIN_COLUMNS} of china.jpg and flower.jpg")

    def _crops(self, region: Tensor, count: int, split: str) -> InMemory:
        windows = region.unfold(2, self.shape[1], 1).unfold(3, self.shape[2], 1).permute(0, 2, 3, 1, 4, 5)
        positions = windows.shape[:3]
        if count > positions.numel():
            raise ValueError(f"data.{split}_size={count} must be at most {positions.numel()} (distinct crops)")
        chosen = torch.randperm(positions.numel(), generator=generator(f"patches {split}"))[:count]
        photo, top, left = torch.unravel_index(chosen, positions)
        return InMemory(windows[photo, top, left], photo)
