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

_STRIPS = 8  # of a matrix, so that the half known from the other half, or known to be zero, is not computed
_BLOCK = 4096  # rows in flight
_LOST = 4 * torch.finfo(torch.float64).eps  # of the largest square: below it a square is rounding


def _strips(size: int) -> list[tuple[int, int]]:
    return list(pairwise(size * k // _STRIPS for k in range(_STRIPS + 1)))


def _parts(moments: Moments) -> list[tuple[int, int, int]]:
    """Strips (first row, last row, first column that is not zero) of the factor."""
    if moments.triangular:
        return [(first, last, first) for first, last in _strips(len(moments.factor))]
    return [(0, len(moments.factor), 0)]


def _product(a: Moments, b: Moments) -> Tensor:
    """F_a F_b^T, the side with fewer rows first."""
    product = torch.empty(len(a.factor), len(b.factor), dtype=torch.float64)
    for i, j, left in _parts(a):
        for k, m, right in _parts(b):
            n = max(left, right)
            torch.mm(a.factor[i:j, n:], b.factor[k:m, n:].T, out=product[i:j, k:m])
    return product if len(a.factor) <= len(b.factor) else product.T


def _squares(a: Moments, b: Moments) -> Tensor:
    """Upper half of a matrix whose eigenvalues are the squares of the singular values of F_a F_b^T."""
    if a.triangular and b.triangular:
        squares = torch.zeros_like(b.factor)  # F_b S_a F_b^T
        for i, j in _strips(len(squares)):
            strip = b.factor[i:j, i:] @ a.covariance[i:, i:]
            torch.mm(strip, b.factor[i:, i:].T, out=squares[i:j, i:])
        return squares
    product = _product(a, b)
    squares = torch.zeros(len(product), len(product), dtype=torch.float64)
    for i, j in _strips(len(product)):
        torch.mm(product[i:j], product[i:].T, out=squares[i:j, i:])
    return squares


def _overlap(a: Moments, b: Moments) -> float:
    """tr (S_a^(1/2) S_b S_a^(1/2))^(1/2), the sum of the singular values of F_a F_b^T where S = F^T F.

    Their squares, eigenvalues of a symmetric matrix, come three times faster. Where the least of them is lost in
    rounding they are found without squaring.
    """
    values = torch.linalg.eigvalsh(_squares(a, b).T)  # reads its lower half alone
    safe = len(values) > 0 and values[0] > _LOST * values[-1]
    return (values.sqrt() if safe else torch.linalg.svdvals(_product(a, b))).sum().item()


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between two Gaussians with these moments,

        |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

    (Dowson & Landau 1982; as a score of generators: Heusel et al. 2017). Only symmetric matrices are
    decomposed: no square root of a product, no imaginary part, exact for rank-deficient covariances. The factor
    of a covariance is kept with it, so a reference is decomposed once.

    Raises:
        ValueError: for moments of unequal dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared: use one extractor"
        )
    spread = sum(torch.linalg.vector_norm(m.factor).square() for m in (a, b))
    distance = (a.mean - b.mean).square().sum() + spread - 2 * _overlap(a, b)
    return max(distance.item(), 0.0)


@dataclass(frozen=True)
class FrechetAtInfinity:
    """Intercept `value` at 1/N = 0 of the straight line through `distances` over 1/`counts`."""

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

    A distance from N samples exceeds its limit on average by nearly c / N, with a c that depends on the
    generator. `points` counts lie evenly between `smallest` and N; the sample of a count is the first so many
    rows of one permutation (drawn by `seed` alone, without replacement), so that the rows are read once; the line is
    a least-squares fit. The reference stays finite, and so does its share of the bias. The law in 1/N holds for
    counts well above the dimension D, so `smallest` is 4 D if None, yet not below N / 10 nor above N / 2.

    Raises:
        ValueError: for fewer than 2 points or counts that are not at least 2 and different.
    """
    largest = len(rows)
    if smallest is None:
        smallest = max(min(max(largest // 10, 4 * rows.shape[1]), largest // 2), 2)
    if points < 2 or not 2 <= smallest <= largest - points + 1:
        raise ValueError(
            f"{points} counts between {smallest} and {largest} samples give no line: at least 2 different counts of "
            "at least 2 samples each are needed"
        )
    counts = tuple(np.linspace(smallest, largest, points).round().astype(int).tolist())
    order = np.random.Generator(np.random.PCG64(seed)).permutation(largest)
    seen, distances = FeatureMoments(), []
    for start, stop in pairwise((0, *counts)):
        for first in range(start, stop, _BLOCK):
            seen.update(read(rows, np.sort(order[first : min(first + _BLOCK, stop)]), device))
        distances.append(frechet_distance(seen.result(), reference))
    _, value = np.polyfit(1 / np.array(counts), distances, 1)
    return FrechetAtInfinity(float(value), counts, tuple(distances))
