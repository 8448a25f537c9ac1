"""Distances between two sets of points, without a feature extractor."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1024  # rows of a distance matrix in memory
_EXACT = "donot_use_mm_for_euclid_dist"  # matrix products lose precision for points far from the origin


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"points must be (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("points contain NaN or infinity")
    return x.detach().cpu().double(), y.detach().cpu().double()


def _directions(count: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    """Return (count, D) uniform unit vectors in orthonormal frames; a complete frame is exact for a pure shift."""
    frames = -(-count // dimensions)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    shape = (frames, dimensions, min(count, dimensions))
    noise = torch.randn(shape, dtype=torch.float64, device=source.device, generator=source).cpu()
    return torch.linalg.qr(noise).Q.mT.reshape(-1, dimensions)[:count]


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, generator: torch.Generator | None = None) -> float:
    """Return the sliced 2-Wasserstein distance, SW^2 = E_theta int_0^1 (Q_x(q; theta) - Q_y(q; theta))^2 dq.

    Q(.; theta) is the quantile function of the points projected on a random unit vector theta (Rabin et al. 2011;
    Bonneel et al. 2015). The integral is exact for the two empirical distributions, also of unequal size. If y is x
    shifted by d in D dimensions, SW^2 = |d|^2 / D. Points are (N, D) and (M, D); the result has their unit. Without a
    `generator` the directions are the same in every call.

    Raises:
        ValueError: for sets that are empty, of unequal D or not finite.
    """
    x, y = _checked(x, y)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    theta = _directions(projections, x.shape[1], generator)
    n, m = len(x), len(y)
    # Both quantile functions are constant between the levels i/n and j/m, counted here in units of 1/(n m).
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(levels, prepend=levels.new_zeros(1)).double() / (n * m)
    quantiles_x = (theta @ x.T).sort(dim=1).values[:, (levels - 1) // m]
    quantiles_y = (theta @ y.T).sort(dim=1).values[:, (levels - 1) // n]
    return ((quantiles_x - quantiles_y).square() @ widths).mean().sqrt().item()


def _mean_distance(x: Tensor, y: Tensor) -> float:
    sums = [torch.cdist(block, y, compute_mode=_EXACT).sum() for block in x.split(_BLOCK)]
    return torch.stack(sums).sum().item() / (len(x) * len(y))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two empirical distributions.

    It is zero only for equal distributions (Székely & Rizzo 2013). This is the V-statistic, in which X' may be X:
    never negative, zero for equal sets, and biased by E|X - X'| / N + E|Y - Y'| / M for samples of two distributions.
    Points are (N, D) and (M, D); the result has their unit.

    Raises:
        ValueError: for sets that are empty, of unequal D or not finite.
    """
    x, y = _checked(x, y)
    return max(2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y), 0.0)
