"""The classes of labelled data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_counts(name: str, train: Tensor, held_out: Tensor, names: Sequence[str] | None) -> list[int]:
    """Return the number of training items of each class 0, 1, ...

    The number of classes is that of the class names, or one more than the largest label of both splits if larger.

    Raises:
        ValueError: if the labels are not classes: all are equal, one is negative, or one is not below the number of
            items.
    """
    both, known = torch.cat([train, held_out]), len(names or ())
    low, high = both.min().item(), both.max().item()
    if low < 0 or high >= max(len(both), known) or (low == high and known < 2):
        found = f"all labels are {low}" if low == high else f"labels go from {low} to {high}"
        raise ValueError(
            f"data.conditional=true needs a class 0, 1, ... for each item, but in {name} {found}: use labelled data, "
            "or data.conditional=false"
        )
    return torch.bincount(train, minlength=max(high + 1, known)).tolist()
