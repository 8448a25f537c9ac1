"""The classes of labelled data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_counts(name: str, train: Tensor, held_out: Tensor, names: Sequence[str] | None) -> list[int]:
    """Training items of each class 0, 1, ..., as many as the labels of both splits, or the known names, tell.

    Raises:
        ValueError: if the labels are no classes: all are equal, below 0, or not below the number of items.
    """
    both, known = torch.cat([train, held_out]), len(names or ())
    low, high = both.min().item(), both.max().item()
    if low < 0 or high >= max(len(both), known) or (low == high and known < 2):
        found = f"all labels are {low}" if low == high else f"labels go from {low} to {high}"
        raise ValueError(
            f"data.conditional=true needs a class 0, 1, ... for each item, and in {name} {found}: leave it false, or "
            "use labelled data"
        )
    return torch.bincount(train, minlength=max(high + 1, known)).tolist()
