"""Samples with the noise from which each starts, as written by sample.py with noise=true: the pairs of reflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_lab.data.batches import InMemory
from diffusion_lab.data.contract import check_shape

SAMPLES, NOISE = "samples.npz", "noise.npy"


class Pairs(InMemory):
    """Samples x (N, ...), labels (N,) and noise (N, ...); `__getitems__` returns rows of all three."""

    def __init__(self, x: Tensor, labels: Tensor, noise: Tensor) -> None:
        super().__init__(x, labels)
        self.noise = noise

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return *super().__getitem__(index), self.noise[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        return *super().__getitems__(indices), self.noise.index_select(0, torch.as_tensor(indices))


def read_pairs(folder: str, shape: tuple[int, ...], grey_levels: int | None) -> tuple[Dataset, Dataset]:
    """The (training, held-out) pairs of a folder of sample.py; the last tenth is held out.

    Args:
        grey_levels: images become integers 0..grey_levels - 1; None: floats in [0, 1].

    Raises:
        ValueError: if a file is missing, or the files do not belong together or to data of this shape.
    """
    for name in (SAMPLES, NOISE):
        if not (Path(folder) / name).is_file():
            raise ValueError(f"data.pairs={folder} holds no {name}: {HOW}")
    with np.load(Path(folder) / SAMPLES) as arrays:
        x = torch.from_numpy(arrays["arr_0"])
        labels = torch.from_numpy(arrays["arr_1"]) if "arr_1" in arrays else torch.zeros(len(x), dtype=torch.int64)
    noise = torch.from_numpy(np.load(Path(folder) / NOISE))
    if x.dtype == torch.uint8:
        x = x.permute(0, 3, 1, 2)
        x = x.float() / 255 if grey_levels is None else (x.float() / 255 * (grey_levels - 1)).round().to(torch.int32)
    if len(x) < 10 or len(noise) != len(x):
        raise ValueError(f"data.pairs={folder}: {len(x)} samples, {len(noise)} noises; at least 10 pairs needed: {HOW}")
    for part in (x, noise):
        check_shape(f"data.pairs={folder}", shape, tuple(part.shape[1:]))
    border = len(x) - len(x) // 10
    train, held_out = (Pairs(x[part], labels[part], noise[part]) for part in (slice(border), slice(border, None)))
    return train, held_out


HOW = "write both by sample.py with noise=true and a sampler that adds no noise, such as ode"
