"""Handwritten digits, 8x8, included in scikit-learn: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory, generator
from diffusion_lab.ranges import Count, Levels

TRAIN_SIZE = 1400


@dataclass(kw_only=True, eq=False)
class Digits(DataModule):
    """1797 digits (1, 8, 8) with 17 grey levels 0..16, in a fixed split: 1400 train, 397 held out.

    The test set of Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
    """

    shape: tuple[Count, ...] = (1, 8, 8)
    grey_levels: Levels | None = 17
    eval_batch_size: Count = 397
    flip: bool = False

    def load(self) -> Splits:
        table = torch.from_numpy(_table())
        x, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].long()
        # Stored in the order of the writers: shuffled, both splits contain all writers and classes.
        order = torch.randperm(len(x), generator=generator("digits split"))
        parts = (order[:TRAIN_SIZE], order[TRAIN_SIZE:])
        train, held_out = (InMemory(x[part], labels[part]) for part in parts)
        return Splits(train, held_out, "one fixed shuffled split")


def _table() -> np.ndarray:
    """Return bytes (1797, 65): 64 pixels and the label of each digit."""
    package = find_spec("sklearn")
    path = Path(package.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if package else Path()
    if path.is_file():  # read without importing sklearn, which takes seconds
        return np.loadtxt(path, delimiter=",", dtype=np.uint8)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.uint8)
