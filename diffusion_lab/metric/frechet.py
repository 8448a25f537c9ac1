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
_LOST = 4 * torch.finfo(torch.float64).eps  # of the largest square, times sqrt(D): below it a square is rounding


def _strips(size: int) -> list[tuple[int, int]]:
    return list(pairwise(size * k // _STRIPS for k in range(_STRIPS + 1)))


def _conjugated(covariance: Tensor, root: Tensor) -> Tensor:
    """Upper half of R S R^T for an upper triangular R."""
    result = torch.zeros_like(root)
    for i, j in _strips(len(root)):
        strip = root[i:j, i:] @ covariance[i:, i:]
        for k, m in _strips(len(root)):
            if k >= i:
                torch.mm(strip[:, k - i :], root[k:m, k:].T, out=result[i:j, k:m])
    return result


def _product(a: Moments, b: Moments) -> Tensor:
    """F_a F_b^T, the side with fewer rows first."""
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
    """Upper half of P P^T."""
    squares = torch.zeros(len(product), len(product), dtype=torch.float64)
    for i, j in _strips(len(product)):
        torch.mm(product[i:j], product[i:].T, out=squares[i:j, i:])
    return squares


def _roots(squares: Tensor) -> float | None:
    """The sum of the roots of the eigenvalues of a matrix known by its upper half; None if one is lost in rounding."""
    values = torch.linalg.eigvalsh(squares.T)  # reads its lower half alone
    if not len(values) or values[0] <= _LOST * len(values) ** 0.5 * values[-1]:
        return None
    return values.sqrt().sum().item()


def _overlap(a: Moments, b: Moments) -> float:
    """tr (S_a^(1/2) S_b S_a^(1/2))^(1/2), the sum of the singular values of F_a F_b^T where S = F^T F.

    Their squares, eigenvalues of a symmetric matrix, come three times faster; where F_b is triangular the matrix is
    F_b S_a F_b^T, and a needs no factor. Where the least of them is lost in rounding they are found without squaring.
    """
    found = _roots(_conjugated(a.covariance, b.factor)) if a.rows is None and b.triangular else None
    if found is None:
        product = _product(a, b)
        found = None if a.triangular and b.triangular else _roots(_squared(product))
    return torch.linalg.svdvals(product).sum().item() if found is None else found


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
    distance = (a.mean - b.mean).square().sum() + a.variance + b.variance - 2 * _overlap(a, b)
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
