"""The Fréchet distance between two sets of features, and its limit for infinitely many samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.moments import FeatureMoments, Moments, moments
from diffusion_lab.metric.rows import Rows, read

__all__ = ["FeatureMoments", "FrechetAtInfinity", "Moments", "frechet_at_infinity", "frechet_distance", "moments"]

_STRIPS = 8  # of a matrix, so that the half that is zero, or follows by symmetry, is not computed
_BLOCK = 4096  # rows in memory at once
_ROUNDING = 4 * torch.finfo(torch.float64).eps  # times sqrt(D): relative error of the eigenvalues of a square


def _strips(size: int) -> list[tuple[int, int]]:
    return list(pairwise(size * k // _STRIPS for k in range(_STRIPS + 1)))


def _conjugated(covariance: Tensor, root: Tensor) -> Tensor:
    """Return the upper half of R S R^T for an upper triangular R."""
    result = torch.zeros_like(root)
    for i, j in _strips(len(root)):
        strip = root[i:j, i:] @ covariance[i:, i:]
        for k, m in _strips(len(root)):
            if k >= i:
                torch.mm(strip[:, k - i :], root[k:m, k:].T, out=result[i:j, k:m])
    return result


def _product(a: Moments, b: Moments) -> Tensor:
    """Return F_a F_b^T, transposed if it has fewer columns than rows."""
    if a.triangular and not b.triangular:
        a, b = b, a
    if not b.triangular:
        product = a.factor @ b.factor.T
    else:
        product = torch.empty(len(a.factor), len(b.factor), dtype=torch.float64)
        for i, j in _strips(len(b.factor)):
            torch.mm(a.factor[:, i:], b.factor[i:j, i:].T, out=product[:, i:j])
    return product if len(product) <= len(product.T) else product.T


def _squared(product: Tensor) -> Tensor:
    """Return the upper half of P P^T."""
    squares = torch.zeros(len(product), len(product), dtype=torch.float64)
    for i, j in _strips(len(product)):
        torch.mm(product[i:j], product[i:].T, out=squares[i:j, i:])
    return squares


def _roots(squares: Tensor) -> float | None:
    """Return the sum of the square roots of the eigenvalues, given the upper half; None if one is below rounding."""
    values = torch.linalg.eigvalsh(squares.T)  # reads only the lower half
    if not len(values) or values[0] <= _ROUNDING * len(values) ** 0.5 * values[-1]:
        return None
    return values.sqrt().sum().item()


def _trace_root(a: Moments, b: Moments) -> float:
    """Return tr (S_a^(1/2) S_b S_a^(1/2))^(1/2), the sum of the singular values of F_a F_b^T, where S = F^T F.

    Their squares, the eigenvalues of a symmetric matrix, take a third of the time; if F_b is triangular, the matrix is
    F_b S_a F_b^T, and F_a is not needed. If the smallest is below rounding, the singular values are computed instead.
    """
    found = _roots(_conjugated(a.covariance, b.factor)) if a.rows is None and b.triangular else None
    if found is None:
        product = _product(a, b)
        found = None if a.triangular and b.triangular else _roots(_squared(product))
    return torch.linalg.svdvals(product).sum().item() if found is None else found


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared 2-Wasserstein distance between two Gaussians with these moments,

        |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

    (Dowson & Landau 1982; for generative models: Heusel et al. 2017). Only symmetric matrices are decomposed, so there
    is no matrix square root of a product and no imaginary part, and rank-deficient covariances are exact. `Moments`
    caches the factor of a covariance, so that a reference is decomposed once.

    Raises:
        ValueError: for moments of unequal dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared: use one extractor"
        )
    distance = (a.mean - b.mean).square().sum() + a.variance + b.variance - 2 * _trace_root(a, b)
    return max(distance.item(), 0.0)


@dataclass(frozen=True)
class FrechetAtInfinity:
    """`value`: the intercept at 1/N = 0 of the least-squares line through `distances` over 1/`counts`."""

    value: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_at_infinity(
    rows: Rows,
    reference: Moments,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FrechetAtInfinity:
    """The Fréchet distance to `reference` extrapolated to infinitely many samples (Chong & Forsyth 2020).

    The expected distance of N samples exceeds its limit by about c / N, where c depends on the generator. A line in 1/N
    is fitted by least squares to the distances of `points` counts, evenly spaced between `smallest` and N. The subsets
    are the first rows of one permutation, which depends on `seed` alone, so that the rows are read once. The bias of
    the finite reference remains. The distance is linear in 1/N for counts well above the dimension D; therefore
    `smallest`=None means 4 D, but at least N / 10 and at most N / 2.

    Raises:
        ValueError: for fewer than 2 points, or counts that are equal or below 2.
    """
    largest = len(rows)
    if smallest is None:
        smallest = max(min(max(largest // 10, 4 * rows.shape[1]), largest // 2), 2)
    if points < 2 or not 2 <= smallest <= largest - points + 1:
        raise ValueError(
            f"no line can be fitted to {points} counts between {smallest} and {largest} samples: at least 2 different "
            "counts of at least 2 samples are needed"
        )
    counts = tuple(np.linspace(smallest, largest, points).round().astype(int).tolist())
    order = np.random.Generator(np.random.PCG64(seed)).permutation(largest)
    accumulator, distances = FeatureMoments(), []
    for start, stop in pairwise((0, *counts)):
        for first in range(start, stop, _BLOCK):
            accumulator.update(read(rows, np.sort(order[first : min(first + _BLOCK, stop)]), device))
        distances.append(frechet_distance(accumulator.result(), reference))
    _, value = np.polyfit(1 / np.array(counts), distances, 1)
    return FrechetAtInfinity(float(value), counts, tuple(distances))
