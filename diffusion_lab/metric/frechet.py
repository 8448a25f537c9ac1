"""The Fréchet distance between two sets of features, in float64 and in memory independent of their sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of `count` feature vectors, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.mean.dtype != torch.float64 or self.covariance.dtype != torch.float64:
            raise ValueError(f"moments must be float64, got {self.mean.dtype} and {self.covariance.dtype}")
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}: draw more samples")
        dimensions = len(self.mean)
        if self.covariance.shape != (dimensions, dimensions):
            raise ValueError(
                f"a mean of {dimensions} dimensions needs a covariance ({dimensions}, {dimensions}), "
                f"got {tuple(self.covariance.shape)}"
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("moments contain NaN or infinity: no distance is computed from broken samples")


class FeatureMoments:
    """Running count, mean and scatter sum (x - mean)(x - mean)^T of features that arrive in batches.

    Each batch is centred before it is squared and merged by the pairwise update of Chan, Golub & LeVeque
    (1979)

        mean = mean_a + d n_b / n,  scatter = scatter_a + scatter_b + d d^T n_a n_b / n,  d = mean_b - mean_a,

    so no digits are lost to a mean that is large beside the spread, and neither the order of the batches nor
    their division among processes matters. State: D^2 + D float64 numbers on the CPU, so that it can be sent.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.scatter = torch.zeros((), dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (B, D).

        Raises:
            ValueError: for another D than before, and for NaN or infinity.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be (B, D), got {tuple(features.shape)}")
        if not torch.isfinite(features).all():
            raise ValueError("features contain NaN or infinity: no distance is computed from broken samples")
        if len(features):
            # MPS has no float64; elsewhere the product is taken where the features are.
            wide = (features.cpu() if features.device.type == "mps" else features).detach().double()
            mean = wide.mean(0)
            centred = wide - mean
            self._absorb(len(wide), mean.cpu(), (centred.T @ centred).cpu())

    def merge(self, other: FeatureMoments) -> None:
        """Add everything that another accumulator has seen."""
        if other.count:
            self._absorb(other.count, other.mean, other.scatter)

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count and self.mean.shape != mean.shape:
            raise ValueError(f"features of {len(mean)} dimensions after features of {len(self.mean)}")
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.count = total

    def result(self) -> Moments:
        """Mean and unbiased covariance so far.

        Raises:
            ValueError: for fewer than 2 samples.
        """
        return Moments(self.mean, self.scatter / max(self.count - 1, 1), self.count)


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of features (N, D).

    Raises:
        ValueError: for fewer than 2 samples, NaN or infinity.
    """
    accumulator = FeatureMoments()
    accumulator.update(features)
    return accumulator.result()


def _factor(covariance: Tensor) -> Tensor:
    """F (D, rank) with F F^T = covariance; eigenvalues that are rounding errors are cut, not rooted."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between two Gaussians with these moments,

        |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

    (Dowson & Landau 1982; as a score of generators: Heusel et al. 2017). With S = F F^T from the symmetric
    eigen-decomposition, the last trace is the sum of the singular values of F_a^T F_b: no square root of a
    product, no imaginary part, and exact for rank-deficient covariances.

    Raises:
        ValueError: for moments of unequal dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared: use one extractor"
        )
    overlap = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(distance.item(), 0.0)
