"""Rows of features in a tensor, an array, or a file on disk that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """N vectors of D numbers: a tensor, an array, a memory-mapped file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | np.ndarray) -> Tensor | np.ndarray: ...


def finite(features: Tensor) -> Tensor:
    """Return the features unchanged.

    Raises:
        ValueError: for NaN or infinity.
    """
    if not torch.isfinite(features).all():
        raise ValueError("features contain NaN or infinity: the samples or the weights of the extractor are damaged")
    return features


def read(rows: Rows, index: slice | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return the rows at `index` in float64 on `device` (on the CPU instead of MPS, which has no float64).

    Raises:
        ValueError: for NaN or infinity.
    """
    part = rows[index]
    tensor = part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    device = "cpu" if torch.device(device).type == "mps" else device
    return finite(tensor).to(device, torch.float64)


def blocks(rows: Rows, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Yield all rows in order, `size` at a time, as `read` returns them."""
    for start in range(0, len(rows), size):
        yield read(rows, slice(start, start + size), device)


def check_pair(x: Rows, y: Rows) -> None:
    """Raise ValueError unless x is (N, D) and y (M, D)."""
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
