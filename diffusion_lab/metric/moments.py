"""Mean and covariance of features: exact, mergeable, in float64 and in memory independent of their number."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, blocks, finite

_BLOCK = 4096  # rows in flight
_STRIP = 64  # rows of a covariance in flight
_ASYMMETRY = 1e-6  # of the largest variance: what is left when a covariance was kept in float32
_EPS = torch.finfo(torch.float64).eps


class Moments:
    """Mean m (D,) and unbiased covariance S (D, D) in float64; `count` samples, None where nobody knows.

    Either S is given or `rows` (r, D) with rows^T rows = S, as few samples of many dimensions have them; the
    other is made when it is first asked for. A distance to a reference that is used many times is then
    spared the decomposition of its covariance.

    Raises:
        ValueError: for fewer than 2 samples, another dtype, shapes that do not fit, NaN or infinity, and for
            a covariance that is not symmetric or has a negative variance.
    """

    def __init__(
        self, mean: Tensor, covariance: Tensor | None = None, count: int | None = None, rows: Tensor | None = None
    ) -> None:
        self.mean, self.count, self.rows = mean, count, rows
        if count is not None and count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}: draw more samples")
        spread = covariance if rows is None else rows
        if spread is None:
            raise ValueError("moments need a covariance, or rows whose product it is")
        if mean.dtype != torch.float64 or spread.dtype != torch.float64:
            raise ValueError(f"moments must be float64, got {mean.dtype} and {spread.dtype}")
        shape = (len(mean) if rows is None else len(rows), *mean.shape)
        if mean.ndim != 1 or not len(mean) or spread.shape != shape:
            raise ValueError(
                f"a mean (D,) needs a covariance (D, D), got {tuple(mean.shape)} and {tuple(spread.shape)}"
            )
        if not torch.isfinite(mean.sum() + spread.sum()):
            raise ValueError("moments contain NaN or infinity: no distance is computed from broken samples")
        if covariance is not None:
            _check_covariance(covariance)
            self.covariance = covariance

    @cached_property
    def covariance(self) -> Tensor:
        """S (D, D)."""
        return self.rows.T @ self.rows

    @property
    def variance(self) -> Tensor:
        """tr S."""
        return self.covariance.trace() if self.rows is None else self.rows.square().sum()

    @cached_property
    def factor(self) -> Tensor:
        """F (r, D) with F^T F = S: the rows, the root, or the eigenvectors whose values exceed rounding."""
        if self.rows is not None:
            return self.rows
        if self._root is not None:
            return self._root
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * _EPS
        return values[kept, None].sqrt() * vectors.T[kept]

    @property
    def triangular(self) -> bool:
        """Whether the factor is upper triangular (D, D)."""
        return self.rows is None and self._root is not None

    @cached_property
    def _root(self) -> Tensor | None:
        """Cholesky's R with R^T R = S; None where S is singular up to rounding."""
        lower, failed = torch.linalg.cholesky_ex(self.covariance.T)  # in the order of LAPACK
        rounding = len(self.mean) * _EPS * self.covariance.trace()
        return None if failed or lower.diagonal().square().min() <= rounding else lower.T


def _check_covariance(covariance: Tensor) -> None:
    gap = max(
        (covariance[i : i + _STRIP, i:] - covariance[i:, i : i + _STRIP].T).abs().max()
        for i in range(0, len(covariance), _STRIP)
    )
    if gap > _ASYMMETRY * covariance.diagonal().abs().max():
        raise ValueError(f"a covariance is symmetric, this one is not: entries differ by up to {gap.item():.3g}")
    if covariance.diagonal().min() < 0:
        raise ValueError(f"a covariance has no negative variance, got {covariance.diagonal().min().item():.3g}")


class FeatureMoments:
    """Running count, mean and scatter sum (x - mean)(x - mean)^T of features that arrive in batches.

    Batches are kept until there are more than D rows, centred before they are squared, and merged by the pairwise
    update of Chan, Golub & LeVeque (1979)

        mean = mean_a + d n_b / n,  scatter = scatter_a + scatter_b + d d^T n_a n_b / n,  d = mean_b - mean_a,

    so no digits are lost to a mean that is large beside the spread, and neither the order of the batches nor
    their division among processes matters. State: D^2 + D float64 numbers and at most D rows, on the CPU, so that it
    can be sent.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[Tensor] = []  # rows that mean and scatter do not hold yet
        self._folded = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        self._scatter = torch.zeros((), dtype=torch.float64)
        self._dimensions: int | None = None

    def update(self, features: Tensor) -> None:
        """Add features (B, D).

        Raises:
            ValueError: for another D than before, and for NaN or infinity.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be (B, D), got {tuple(features.shape)}")
        self._check(features.shape[1])
        # The product is taken where the features are, unless they are on MPS, which has no float64.
        kept = finite(features).detach()
        self._keep([kept.cpu() if kept.device.type == "mps" else kept.clone()])

    def merge(self, other: FeatureMoments) -> None:
        """Add everything that another accumulator has seen."""
        if not other.count:
            return
        self._check(other._dimensions)
        if other._folded:
            self._absorb(other._folded, other._mean, other._scatter)
        self._keep(other._kept)

    def _check(self, dimensions: int) -> None:
        if self._dimensions not in (None, dimensions):
            raise ValueError(f"features of {dimensions} dimensions after features of {self._dimensions}")
        self._dimensions = dimensions

    def _keep(self, batches: list[Tensor]) -> None:
        self._kept += batches
        self.count = self._folded + sum(map(len, self._kept))
        if self.count - self._folded > self._dimensions:
            self._fold()

    def _fold(self) -> None:
        rows = _joined(self._kept)
        self._kept = []
        mean = rows.mean(0)
        rows -= mean
        self._absorb(len(rows), mean.cpu(), (rows.T @ rows).cpu())

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self._folded + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._scatter = self._scatter + scatter
        self._scatter.addr_(shift, shift, alpha=self._folded * count / total)
        self._folded = total

    def result(self) -> Moments:
        """Mean and unbiased covariance so far; by rows while there are at most D samples.

        Raises:
            ValueError: for fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}: draw more samples")
        if not self._folded:
            rows = _joined(self._kept).cpu()
            mean = rows.mean(0)
            return Moments(mean, count=self.count, rows=_independent(rows - mean))
        if self._kept:
            self._fold()
        return Moments(self._mean, self._scatter / (self.count - 1), self.count)


def _joined(batches: list[Tensor]) -> Tensor:
    """One float64 tensor of its own, on the device of the first batch."""
    return torch.cat([batch.to(batches[0].device, torch.float64) for batch in batches])


def _independent(centred: Tensor) -> Tensor:
    """N - 1 rows with the covariance of N centred rows: each sample against the mean of those before it.

    The orthogonal contrasts of Helmert (1876). Centred rows themselves are linearly dependent, and the root of an
    eigenvalue that should be zero is not small.
    """
    before = torch.arange(1, len(centred), dtype=torch.float64)[:, None]
    means = centred.cumsum(0)[:-1] / before
    return (centred[1:] - means) * (before / ((before + 1) * (len(centred) - 1))).sqrt()


def moments(features: Rows, device: torch.device | str = "cpu") -> Moments:
    """Mean and unbiased covariance of features (N, D), read in blocks.

    Raises:
        ValueError: for fewer than 2 samples, NaN or infinity.
    """
    accumulator = FeatureMoments()
    for block in blocks(features, _BLOCK, device):
        accumulator.update(block)
    return accumulator.result()
