"""The noise process: p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I), and what follows from those two functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

Spacing = Literal["uniform", "quadratic"]
"""How a sampler's times are spread over [0, 1]; see `NoiseProcess.grid`."""

Variance = Literal["fixed_small", "fixed_large"]
"""Variance of the reverse step: that of q(x_s | x_t, x_0), or that of q(x_t | x_s) (Ho et al. 2020, Section 3.2)."""


class NoiseProcess(nn.Module, ABC):
    """A Gaussian noise process on the clock t in [0, 1], t = 0 being data.

    `t` and `s < t` are scalar tensors or of shape (B,); `alpha` and `sigma` keep their shape and dtype.
    """

    levels: int | None = None
    """Number of discrete levels; None for a continuous process."""

    t_min: float = 0.0
    """Where sampling ends."""

    prior_std: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""

    @abstractmethod
    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Training times, float32, shape (batch,)."""

    @abstractmethod
    def grid(self, steps: int | None, spacing: Spacing = "uniform") -> Tensor:
        """Decreasing sampling times t_S > ... > t_0 = t_min, float64 on the CPU, shape (steps + 1,)."""

    @abstractmethod
    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        """w(t) with E_t[w(t) |eps_hat - eps|^2] = the diffusion terms of the variational bound, in nats."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), decreasing in t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def marginal(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t, shaped (B, 1, ..., 1) or (), with the device and dtype of `like`."""
        return _broadcast(self.alpha(t), like), _broadcast(self.sigma(t), like)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps, of the shape of x0."""
        alpha, sigma = self.marginal(t, x0)
        return alpha * x0 + sigma * eps

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, variance) of q(x_t | x_s) = N(scale x_s, variance I) for s < t.

        scale = alpha_t / alpha_s,   variance = sigma_t^2 - scale^2 sigma_s^2
        """
        scale = self.alpha(t) / self.alpha(s)
        return scale, (self.sigma(t) ** 2 - (scale * self.sigma(s)) ** 2).clamp(min=0)

    def posterior(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, variance) of q(x_s | x_t, x_0) = N(a x_t + b x_0, variance I); Ho et al. 2020, Eqs. 6 and 7.

            a = scale sigma_s^2 / sigma_t^2,   b = alpha_s v / sigma_t^2,   variance = v sigma_s^2 / sigma_t^2

        with (scale, v) = transition(s, t).
        """
        scale, v = self.transition(s, t)
        kept = (self.sigma(s) / self.sigma(t)) ** 2
        return scale * kept, self.alpha(s) * v / self.sigma(t) ** 2, v * kept

    def reverse_variance(self, s: Tensor, t: Tensor, variance: Variance) -> Tensor:
        """Variance of the model's step p(x_s | x_t): fixed_small the posterior's, fixed_large q(x_t | x_s)'s."""
        small, large = self.posterior(s, t)[2], self.transition(s, t)[1]
        return {"fixed_small": small, "fixed_large": large}[variance]


def _broadcast(value: Tensor, like: Tensor) -> Tensor:
    value = value.to(like.device, like.dtype)
    return value.reshape(-1, *(1,) * (like.dim() - 1)) if value.dim() else value
