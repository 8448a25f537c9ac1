"""Handwritten digits, 8x8, that come with scikit-learn: real data without a download."""

from __future__ import annotations

from typing import ClassVar

import torch

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory, generator


class Digits(DataModule):
    """1797 digits (1, 8, 8) with 17 grey levels 0..16, divided once and for all: 1400 train, 397 held out.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998), its test part.
    """

    GREY_LEVELS: ClassVar[int | None] = 17
    TRAIN_SIZE: ClassVar[int] = 1400

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (1, 8, 8),
        grey_levels: int | None = 17,
        batch_size: int = 128,
        eval_batch_size: int = 397,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            shape=shape,
            grey_levels=grey_levels,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            flip=flip,
            seed=seed,
        )

    def load(self) -> Splits:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(bunch.target)
        # Stored in the order of the writers: a shuffled split gives both halves the same hands and classes.
        order = torch.randperm(len(x), generator=generator("digits split"))
        parts = (order[: self.TRAIN_SIZE], order[self.TRAIN_SIZE :])
        train, held_out = (InMemory(x[part], labels[part]) for part in parts)
        return Splits(train, held_out, "one fixed shuffled split")
