"""Mean and covariance of features in float64, accumulated over batches with constant memory."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, blocks, finite

_BLOCK = 4096  # rows in memory at once
_STRIP = 64  # rows of a covariance checked at once
_ASYMMETRY = 1e-6  # of the largest variance: the error of a covariance stored in float32
_EPS = torch.finfo(torch.float64).eps


class Moments:
    """Mean m (D,) and unbiased covariance S (D, D) in float64, of `count` samples (None if unknown).

    Pass S, or for fewer samples than dimensions `rows` (r, D) with rows^T rows = S; S is then computed on first use.
    The factor of S is cached, so that a reference is decomposed once.

    Raises:
        ValueError: for fewer than 2 samples, another dtype, inconsistent shapes, NaN or infinity, and for a covariance
            that is not symmetric or has a negative variance.
    """

    def __init__(
        self, mean: Tensor, covariance: Tensor | None = None, count: int | None = None, rows: Tensor | None = None
    ) -> None:
        self.mean, self.count, self.rows = mean, count, rows
        if count is not None and count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}: use more samples")
        matrix = covariance if rows is None else rows
        if matrix is None:
            raise ValueError("moments need a covariance, or rows with rows^T rows = covariance")
        if mean.dtype != torch.float64 or matrix.dtype != torch.float64:
            raise ValueError(f"moments must be float64, got {mean.dtype} and {matrix.dtype}")
        shape = (len(mean) if rows is None else len(rows), *mean.shape)
        if mean.ndim != 1 or not len(mean) or matrix.shape != shape:
            raise ValueError(
                f"a mean (D,) needs a covariance (D, D), got {tuple(mean.shape)} and {tuple(matrix.shape)}"
            )
        if not torch.isfinite(mean.sum() + matrix.sum()):
            raise ValueError("moments contain NaN or infinity: the samples or their features are not finite")
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
        """F (r, D) with F^T F = S: the rows, the Cholesky factor, or scaled eigenvectors if S is singular."""
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
        """The Cholesky factor R with R^T R = S; None if S is singular up to rounding."""
        lower, failed = torch.linalg.cholesky_ex(self.covariance.T)  # in LAPACK's column-major order
        rounding = len(self.mean) * _EPS * self.covariance.trace()
        return None if failed or lower.diagonal().square().min() <= rounding else lower.T


def _check_covariance(covariance: Tensor) -> None:
    gap = max(
        (covariance[i : i + _STRIP, i:] - covariance[i:, i : i + _STRIP].T).abs().max()
        for i in range(0, len(covariance), _STRIP)
    )
    if gap > _ASYMMETRY * covariance.diagonal().abs().max():
        raise ValueError(f"a covariance must be symmetric, but entries differ by up to {gap.item():.3g}")
    if covariance.diagonal().min() < 0:
        raise ValueError(f"variances must not be negative, got {covariance.diagonal().min().item():.3g}")


class FeatureMoments:
    """Running count, mean and scatter matrix sum (x - mean)(x - mean)^T of features that arrive in batches.

    Batches are buffered up to D rows, then centred and merged by the pairwise update of Chan, Golub & LeVeque (1979),

        mean = mean_a + d n_b / n,  scatter = scatter_a + scatter_b + d d^T n_a n_b / n,  d = mean_b - mean_a,

    which has no cancellation if the mean is much larger than the standard deviation. The result does not depend on the
    order of batches or their distribution over processes. Memory: D^2 + D float64 numbers and at most D rows, on the
    CPU, so that it can be sent to other processes.
    """

    def __init__(self) -> None:
        self.count = 0
        self._buffer: list[Tensor] = []  # rows that are not part of mean and scatter yet
        self._merged = 0  # number of rows that are
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
        # The product is computed on the device of the features, except on MPS, which has no float64.
        rows = finite(features).detach()
        self._append([rows.cpu() if rows.device.type == "mps" else rows.clone()])

    def merge(self, other: FeatureMoments) -> None:
        """Add all features of another accumulator."""
        if not other.count:
            return
        self._check(other._dimensions)
        if other._merged:
            self._merge(other._merged, other._mean, other._scatter)
        self._append(other._buffer)

    def _check(self, dimensions: int) -> None:
        if self._dimensions not in (None, dimensions):
            raise ValueError(f"features of {dimensions} dimensions after features of {self._dimensions}")
        self._dimensions = dimensions

    def _append(self, batches: list[Tensor]) -> None:
        self._buffer += batches
        self.count = self._merged + sum(map(len, self._buffer))
        if self.count - self._merged > self._dimensions:
            self._flush()

    def _flush(self) -> None:
        rows = _joined(self._buffer)
        self._buffer = []
        mean = rows.mean(0)
        rows -= mean
        self._merge(len(rows), mean.cpu(), (rows.T @ rows).cpu())

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self._merged + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._scatter = self._scatter + scatter
        self._scatter.addr_(shift, shift, alpha=self._merged * count / total)
        self._merged = total

    def result(self) -> Moments:
        """Return mean and unbiased covariance so far; the latter as rows for at most D samples.

        Raises:
            ValueError: for fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}: use more samples")
        if not self._merged:
            rows = _joined(self._buffer).cpu()
            mean = rows.mean(0)
            return Moments(mean, count=self.count, rows=_helmert(rows - mean))
        if self._buffer:
            self._flush()
        return Moments(self._mean, self._scatter / (self.count - 1), self.count)


def _joined(batches: list[Tensor]) -> Tensor:
    """Concatenate batches to one float64 tensor on the device of the first."""
    return torch.cat([batch.to(batches[0].device, torch.float64) for batch in batches])


def _helmert(centred: Tensor) -> Tensor:
    """Return N - 1 rows with the same covariance as N centred rows: each sample minus the mean of those before it.

    The orthogonal contrasts of Helmert (1876). Centred rows are linearly dependent: an eigenvalue that should be zero
    is only of the size of rounding, and its square root is not small.
    """
    before = torch.arange(1, len(centred), dtype=torch.float64)[:, None]
    means = centred.cumsum(0)[:-1] / before
    return (centred[1:] - means) * (before / ((before + 1) * (len(centred) - 1))).sqrt()


def moments(features: Rows, device: torch.device | str = "cpu") -> Moments:
    """Return mean and unbiased covariance of features (N, D), read in blocks.

    Raises:
        ValueError: for fewer than 2 samples, NaN or infinity.
    """
    accumulator = FeatureMoments()
    for block in blocks(features, _BLOCK, device):
        accumulator.update(block)
    return accumulator.result()
