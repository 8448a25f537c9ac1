"""Two-dimensional distributions with exact density and score, clean and noised, as ground truth for models.

The noised marginal is the distribution of alpha x_0 + sigma eps, eps ~ N(0, I). Points are (B, 2), `alpha` and `sigma`
numbers or tensors (B,) or (B, 1). Values are computed in float64 and returned in the dtype of `x`. All five are scaled
so that each coordinate has a standard deviation between 0.6 and 1.05, given in brackets below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Modes(NamedTuple):
    """The `means` (K, 2) and `weights` (K,) of the modes, float64; the weights sum to 1."""

    means: Tensor
    weights: Tensor


class Toy2dDensity(ABC):
    """A distribution of points (n, 2); `modes` is None if it has none, as on a curve."""

    modes: Modes | None

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw independent points (n, 2), float32, on the CPU."""

    @abstractmethod
    def log_density(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        """log p(x) (B,) in nats of the noised marginal; the clean one by default."""

    @abstractmethod
    def score(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        """grad_x log p(x) (B, 2) of the noised marginal."""

    def mode_weights(self, points: Tensor) -> Tensor:
        """Fraction (K,) of `points` (n, 2) nearest to each mode; raises ValueError if there are no modes."""
        if self.modes is None:
            raise ValueError("this distribution is a curve and has no modes to count")
        nearest = nearest_mode(points, self.modes)
        return torch.bincount(nearest, minlength=len(self.modes.weights)).to(torch.float64) / len(points)


def nearest_mode(points: Tensor, modes: Modes) -> Tensor:
    """Return the index (n,) int64 of the mode nearest to each point (n, 2)."""
    return torch.cdist(points.double(), modes.means.to(points.device)).argmin(1)


@dataclass(frozen=True, eq=False)
class GaussianMixture(Toy2dDensity):
    """sum_k w_k N(m_k, std^2 I); noised, it is sum_k w_k N(alpha m_k, (alpha^2 std^2 + sigma^2) I).

    A curve blurred by N(0, std^2 I) is the same formula with the m_k as quadrature nodes along the curve
    (`curve=True`); nodes closer than std make it smooth to machine precision.
    """

    means: Tensor
    weights: Tensor
    std: float
    curve: bool = False

    @property
    def modes(self) -> Modes | None:
        return None if self.curve else Modes(self.means, self.weights)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return (self.means[chosen] + self.std * noise).float()

    def log_density(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        return self._components(x, alpha, sigma)[0].logsumexp(1).to(x.dtype)

    def score(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        log_parts, means, variance = self._components(x, alpha, sigma)
        posterior_mean = (log_parts.softmax(1)[..., None] * means).sum(1)
        return ((posterior_mean - x) / variance).to(x.dtype)

    def _components(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, ...]:
        """Log of w_k N(x; m_k, v) (B, K), the means m_k (B or 1, K, 2) and the variance v (B or 1, 1)."""
        alpha, sigma = _column(alpha, x), _column(sigma, x)
        variance = (alpha * self.std) ** 2 + sigma**2
        means = alpha[..., None] * self.means.to(x.device)
        distance = (x[:, None].double() - means).square().sum(-1)
        log_weights = self.weights.to(x.device).log()
        return log_weights - distance / (2 * variance) - torch.log(2 * math.pi * variance), means, variance


@dataclass(frozen=True, eq=False)
class SquareMixture(Toy2dDensity):
    """Uniform on K squares with lower corners c_k and side h; noised, (1 / K) sum_k prod_d q_kd with

    q_kd = [Phi((x_d - alpha c_kd) / sigma) - Phi((x_d - alpha (c_kd + h)) / sigma)] / (alpha h).

    sigma is clamped to at least 1e-6 and alpha to at least 1e-8. The clean density is therefore exact farther than
    1e-5 from any edge; outside, its logarithm is a huge negative number and its score points back to the board.
    """

    corners: Tensor
    side: float

    @property
    def modes(self) -> Modes:
        return Modes(self.corners + self.side / 2, _uniform(len(self.corners)))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.corners), (n,), generator=generator)
        return (self.corners[chosen] + self.side * torch.rand(n, 2, generator=generator).double()).float()

    def log_density(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        log_factors = self._factors(x, alpha, sigma)[0]
        return (log_factors.sum(-1).logsumexp(1) - math.log(len(self.corners))).to(x.dtype)

    def score(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        log_factors, slopes = self._factors(x, alpha, sigma)
        return (log_factors.sum(-1).softmax(1)[..., None] * slopes).sum(1).to(x.dtype)

    def _factors(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Log of each square's factor per coordinate (B, K, 2) and its derivative in that coordinate."""
        alpha = _column(alpha, x).clamp(min=1e-8)[..., None]
        sigma = _column(sigma, x).clamp(min=1e-6)[..., None]
        low = (x[:, None].double() - alpha * self.corners.to(x.device)) / sigma
        high = low - alpha * self.side / sigma
        # Phi(low) - Phi(high) = Phi(-high) - Phi(-low): use the form whose terms are not near 1, to avoid cancellation.
        mirror = low + high > 0
        upper, lower = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
        log_upper = torch.special.log_ndtr(upper)
        log_mass = log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
        slope = (torch.exp(_log_normal(low) - log_mass) - torch.exp(_log_normal(high) - log_mass)) / sigma
        return log_mass - torch.log(alpha * self.side), slope


def _column(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=x.device).reshape(-1, 1)


def _log_normal(z: Tensor) -> Tensor:
    return -z.square() / 2 - math.log(2 * math.pi) / 2


def _uniform(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def _ring(angle: Tensor, radius: float | Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _normalised(curve: Tensor) -> Tensor:
    """Centre and scale both axes equally, to a mean variance of 0.85^2."""
    centred = curve - curve.mean(0)
    return 0.85 * centred / centred.square().mean().sqrt()


def eight_gaussians() -> GaussianMixture:
    """Eight equal modes of std 0.1 on a circle of radius 1.2 (overall 0.854)."""
    return GaussianMixture(_ring(2 * math.pi * torch.arange(8).double() / 8, 1.2), _uniform(8), 0.1)


def two_modes() -> GaussianMixture:
    """1/5 N((-1, -1), 0.2^2 I) + 4/5 N((1, 1), 0.2^2 I): Song and Ermon 2019, section 3.2.2, scaled by 1/5.

    Overall standard deviation 0.825, mean (0.6, 0.6). The score of the clean density hardly depends on the weights of
    the modes, so Langevin dynamics alone samples them wrongly.
    """
    means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.2, 0.8], dtype=torch.float64), 0.2)


def moons() -> GaussianMixture:
    """Two interlocked half circles blurred by std 0.05 (overall 1.05 and 0.60)."""
    upper = _ring(math.pi * _midpoints(256), 1.0)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    return GaussianMixture(_normalised(torch.cat([upper, lower])), _uniform(512), 0.05, curve=True)


def swiss_roll() -> GaussianMixture:
    """Spiral radius = angle, angle uniform in [1.5 pi, 4.5 pi], blurred by 0.05 (overall 0.83 and 0.87)."""
    angle = 1.5 * math.pi * (1 + 2 * _midpoints(512))
    return GaussianMixture(_normalised(_ring(angle, angle)), _uniform(512), 0.05, curve=True)


def checkerboard() -> SquareMixture:
    """Uniform on the eight dark squares of a 4 x 4 board [-1.5, 1.5]^2 (overall 0.866)."""
    board = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    return SquareMixture(0.75 * board[board.sum(1) % 2 == 0].double() - 1.5, 0.75)


TARGETS: dict[str, Callable[[], Toy2dDensity]] = {
    build.__name__: build for build in (eight_gaussians, moons, checkerboard, swiss_roll, two_modes)
}
