"""The kernel distance (KID): a score that is unbiased at any number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, check_pair, read

_SIDE = 128  # rows of a kernel matrix at once: what stays in the cache is three times as fast
_ROWS = 2000  # of each set, from which the error is found


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (over N, not N - 1) of the distances of `subsets` pairs of subsets.

    The standard error is that of the mean as an estimate of the distributions' distance, from both sets being finite
    and from the subsets being few.  The standard deviation is what others report; divided by the root of `subsets` it
    would say next to nothing, as the subsets share their rows.
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
    """Squared maximum mean discrepancy of a cubic kernel, averaged over random subsets of m rows of each set:

        (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2,
        k(x, y) = (x.y / D + 1)^3

    (Binkowski et al. 2018, Section 4). Unbiased, so it may be slightly negative for equal distributions. The
    subsets are those of torch-fidelity: drawn without replacement by NumPy's RandomState(seed), x before y. Rows are
    (N, D) and (M, D); the arithmetic is float64. The standard error comes from the infinitesimal jackknife of both
    sets (`finite_sets_variance`) and the spread over subsets.

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
    chosen_variance = np.var(distances, ddof=1) / len(distances) if len(distances) > 1 else 0.0
    error = math.sqrt(finite_sets_variance(x, y, device, subset_size) + chosen_variance)
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), error, subsets, subset_size)


def finite_sets_variance(x: Rows, y: Rows, device: torch.device | str = "cpu", block: int = 1000) -> float:
    """The variance of the distance of all N and M rows, from what single rows contribute (infinitesimal jackknife):

        4 var_i(mean_j k(x_i, x_j) - mean_j k(x_i, y_j)) / N + 4 var_i(mean_j k(y_i, y_j) - mean_j k(y_i, x_j)) / M

    (the first-order variance of a U-statistic: Hoeffding 1948; Gretton et al. 2012, Section 4).  It is asymptotically
    exact for unequal distributions, and up to twice too large or so for equal ones.  At most `_ROWS` of each are seen,
    read `block` at a time.
    """
    parts = [
        torch.cat([read(rows, slice(i, min(i + block, _ROWS)), device) for i in range(0, min(len(rows), _ROWS), block)])
        for rows in (x, y)
    ]
    variance = 0.0
    for own, other, size in ((*parts, len(x)), (*parts[::-1], len(y))):
        mine = (_row_sums(own, own) - (own.square().sum(1) / own.shape[1] + 1).pow(3)) / (len(own) - 1)
        variance += 4 * (mine - _row_sums(own, other) / len(other)).var().item() / size
    return variance


def _unbiased(x: Tensor, y: Tensor) -> float:
    size, dimensions = x.shape
    within = _kernel_sum(x, x) + _kernel_sum(y, y)
    own = sum((rows.square().sum(1) / dimensions + 1).pow(3).sum() for rows in (x, y))
    return ((within - own) / (size * (size - 1)) - 2 * _kernel_sum(x, y) / size**2).item()


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(())
    for part in x.split(_SIDE):
        root = _root(part, y).flatten()
        total += torch.dot(root.square(), root)
    return total


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([_root(part, y).pow(3).sum(1) for part in x.split(_SIDE)])


def _root(x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(x.new_ones(1), x, y.T, alpha=1 / x.shape[1])
