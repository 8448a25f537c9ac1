"""The kernel distance (KID), which is unbiased for any number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, check_pair, read

_SIDE = 128  # rows of a kernel matrix at once: blocks that fit into the cache are three times as fast
_ROWS = 2000  # of each set, for the standard error


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (divided by N, not N - 1) of the distances of `subsets` pairs of subsets.

    The standard error is that of the mean as an estimate of the distance of the distributions; it includes the finite
    size of both sets and the finite number of subsets.  The standard deviation is what other programs report; divided
    by sqrt(subsets) it would not be a standard error, as the subsets share rows.
    """

    value: float
    standard_deviation: float
    standard_error: float
    subsets: int
    subset_size: int


def kernel_distance(
    x: Rows,
    y: Rows,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """Return the squared maximum mean discrepancy of a cubic kernel, averaged over random subsets of m rows each:

        (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2,
        k(x, y) = (x.y / D + 1)^3

    (Binkowski et al. 2018, Section 4). It is unbiased, so it may be slightly negative for equal distributions. The
    subsets are those of torch-fidelity: drawn without replacement by NumPy's RandomState(seed), x before y. Rows are
    (N, D) and (M, D); computed in float64. The standard error is from the infinitesimal jackknife of both sets
    (`finite_sets_variance`) and the variance over subsets.

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
            f"{fewest}, or use more samples"
        )
    source = np.random.RandomState(seed)  # the generator of torch-fidelity, for the same subsets
    distances = []
    # Subsets as large as both sets are all equal.
    for _ in range(1 if subset_size == len(x) == len(y) else subsets):
        chosen = [np.sort(source.choice(len(rows), subset_size, replace=False)) for rows in (x, y)]
        distances.append(_unbiased(read(x, chosen[0], device), read(y, chosen[1], device)))
    chosen_variance = np.var(distances, ddof=1) / len(distances) if len(distances) > 1 else 0.0
    error = math.sqrt(finite_sets_variance(x, y, device, subset_size) + chosen_variance)
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), error, subsets, subset_size)


def finite_sets_variance(x: Rows, y: Rows, device: torch.device | str = "cpu", block: int = 1000) -> float:
    """Return the variance of the distance of all N and M rows by the infinitesimal jackknife,

        4 var_i(mean_j k(x_i, x_j) - mean_j k(x_i, y_j)) / N + 4 var_i(mean_j k(y_i, y_j) - mean_j k(y_i, x_j)) / M

    (the first-order variance of a U-statistic: Hoeffding 1948; Gretton et al. 2012, Section 4).  It is asymptotically
    exact for unequal distributions, and up to about twice too large for equal ones.  At most `_ROWS` rows of each set
    are used, read `block` at a time.
    """
    parts = [
        torch.cat([read(rows, slice(i, min(i + block, _ROWS)), device) for i in range(0, min(len(rows), _ROWS), block)])
        for rows in (x, y)
    ]
    variance = 0.0
    for a, b, size in ((*parts, len(x)), (*parts[::-1], len(y))):
        within = (_row_sums(a, a) - _diagonal(a)) / (len(a) - 1)
        variance += 4 * (within - _row_sums(a, b) / len(b)).var().item() / size
    return variance


def _unbiased(x: Tensor, y: Tensor) -> float:
    size = len(x)
    within = _kernel_sum(x, x) + _kernel_sum(y, y)
    diagonal = sum(_diagonal(rows).sum() for rows in (x, y))
    return ((within - diagonal) / (size * (size - 1)) - 2 * _kernel_sum(x, y) / size**2).item()


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(())
    for part in x.split(_SIDE):
        root = _cube_root(part, y).flatten()
        total += torch.dot(root.square(), root)
    return total


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([_cube_root(part, y).pow(3).sum(1) for part in x.split(_SIDE)])


def _diagonal(x: Tensor) -> Tensor:
    """Return k(x_i, x_i), (N,)."""
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)


def _cube_root(x: Tensor, y: Tensor) -> Tensor:
    """Return x_i.y_j / D + 1, (N, M)."""
    return torch.addmm(x.new_ones(1), x, y.T, alpha=1 / x.shape[1])
