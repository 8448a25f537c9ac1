"""The kernel distance (KID): a score that is unbiased at any number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, check_pair, read

_SIDE = 128  # rows of a kernel matrix at once: what stays in the cache is three times as fast


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (over N, not N - 1) of the distances of `subsets` pairs of subsets.

    The standard error understates: subsets of the same rows share some of them.
    """

    value: float
    standard_deviation: float
    subsets: int
    subset_size: int

    @property
    def standard_error(self) -> float:
        return self.standard_deviation / math.sqrt(self.subsets)


def kernel_distance(
    x: Rows,
    y: Rows,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """Squared maximum mean discrepancy of a cubic kernel, averaged over random subsets of m rows of each set:

        (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2,
        k(x, y) = (x.y / D + 1)^3

    (Binkowski et al. 2018, Section 4). Unbiased, so it may be slightly negative for equal distributions. The
    subsets are those of torch-fidelity: drawn without replacement by NumPy's RandomState(seed), x before y. Rows are
    (N, D) and (M, D); the arithmetic is float64.

    Raises:
        ValueError: for subsets larger than a set or of fewer than 2 rows, unequal D, NaN or infinity.
    """
    check_pair(x, y)
    fewest = min(len(x), len(y))
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"at least 1 subset of at least 2 rows is needed, got {subsets} of {subset_size}")
    if subset_size > fewest:
        raise ValueError(
            f"subsets of {subset_size} rows cannot be drawn from {len(x)} and {len(y)}: set subset_size to at most "
            f"{fewest}, or draw more samples"
        )
    source = np.random.RandomState(seed)  # the generator of torch-fidelity, for the same subsets
    distances = []
    # Subsets as large as both sets are all alike.
    for _ in range(1 if subset_size == len(x) == len(y) else subsets):
        chosen = [np.sort(source.choice(len(rows), subset_size, replace=False)) for rows in (x, y)]
        distances.append(_unbiased(read(x, chosen[0], device), read(y, chosen[1], device)))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), subsets, subset_size)


def _unbiased(x: Tensor, y: Tensor) -> float:
    size, dimensions = x.shape
    within = _kernel_sum(x, x) + _kernel_sum(y, y)
    own = sum((rows.square().sum(1) / dimensions + 1).pow(3).sum() for rows in (x, y))
    return ((within - own) / (size * (size - 1)) - 2 * _kernel_sum(x, y) / size**2).item()


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(())
    for part in x.split(_SIDE):
        root = torch.addmm(x.new_ones(1), part, y.T, alpha=1 / x.shape[1]).flatten()
        total += torch.dot(root.square(), root)
    return total
