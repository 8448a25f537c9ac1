"""The noise process p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I), and the quantities derived from alpha and sigma."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

EvenSpacing = Literal["uniform", "quadratic", "trailing", "leading", "linspace", "strided"]
"""Spacings that are even in t or in sqrt(t); on a discrete process they select noise levels."""

Spacing = Literal["uniform", "quadratic", "trailing", "leading", "linspace", "strided", "linear", "log_snr", "karras"]
"""Spacing of a sampler's timesteps; see `NoiseProcess.timesteps`."""

Variance = Literal["fixed_small", "fixed_large", "learned_range"]
"""Variance of the reverse step: that of q(x_s | x_t, x_0), that of q(x_t | x_s) (Ho et al. 2020, Section 3.2), or
learned between the two (Nichol & Dhariwal 2021, Eq. 15)."""


class NoiseProcess(nn.Module, ABC):
    """A Gaussian noise process in t in [0, 1]; t = 0 is data.

    It solves dx = f(t) x dt + g(t) dw from x_0 (Song et al. 2021, Section 3.4).  `t` and `s < t` are scalar tensors or
    have shape (B,); every function of time keeps their shape and dtype.
    """

    levels: int | None = None
    """Number of discrete noise levels; None for a continuous process."""

    t_min: float
    """The last time at which a sampler evaluates the network; a final denoising step leads from there to t = 0."""

    t_train_min: float = 1e-5
    """Training times lie in [t_train_min, 1]."""

    t_first: float = 1.0
    """The first time of a sampler, unless the user chooses it or the spacing is "trailing", which starts at 1."""

    t_max: float = 1.0
    """The largest time at which the functions of time are defined; EDM's churn may start a step after t = 1."""

    prior_std: float = 1.0
    """Standard deviation of the prior N(0, prior_std^2 I) of x_1."""

    keeps_signal: bool = False
    """Whether alpha = 1 at all times, so that x_1 is close to the prior only if sigma(1) is large."""

    def __init_subclass__(cls) -> None:
        if "even_grid" in vars(cls):  # its name in the first edition
            cls.even_timesteps = cls.even_grid

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""

    @abstractmethod
    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient d log alpha / dt."""

    @abstractmethod
    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient, g^2 = d sigma^2 / dt - 2 f sigma^2."""

    @abstractmethod
    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Sample training times, float32, shape (batch,)."""

    def importance_times(
        self, batch: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample times uniform in log-SNR; return (t, importance weight), each (batch,), float32.

        As g^2 / sigma^2 = -d log_snr / dt, their density is proportional to g^2 / sigma^2, which minimises the variance
        of likelihood weighting (Song et al. 2021b, Section 4.2).  The weight is the uniform density / this density.
        """
        ends = torch.tensor([self.t_train_min, 1.0], dtype=torch.float64)
        high, low = self.log_snr(ends).tolist()
        u = torch.rand(batch, device=device, dtype=torch.float32, generator=generator)
        t = self.time(low + (high - low) * (u if device.type == "mps" else u.double())).clamp(min=self.t_train_min)
        factor = (high - low) / (1 - self.t_train_min) * (self.sigma(t) / self.g(t)) ** 2
        return t.float(), factor.float()

    @abstractmethod
    def even_timesteps(self, steps: int | None, spacing: EvenSpacing, start: float, end: float) -> Tensor:
        """`timesteps` from `start` to `end` for a spacing that is even in t or in sqrt(t)."""

    @abstractmethod
    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        """w(t) with E_t[w(t) |eps_hat - eps|^2] = the diffusion terms of the variational bound, in nats."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), decreasing in t."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def time(self, log_snr: Tensor, latest: float = 1.0) -> Tensor:
        """The inverse of `log_snr`: the time in (0, latest] with this log-SNR, by bisection."""
        low, high = torch.zeros_like(log_snr), torch.full_like(log_snr, latest)
        for _ in range(torch.finfo(log_snr.dtype).bits):
            middle = (low + high) / 2
            before = self.log_snr(middle) > log_snr
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return high

    def span(
        self, t_start: float | None = None, t_end: float | None = None, spacing: str = "trailing"
    ) -> tuple[float, float]:
        """The first and last time at which a sampler evaluates the network.

        None stands for `t_first`, or 1 with spacing "trailing", and for `t_min`.  For a discrete process they are
        rounded inwards to noise levels.

        Raises:
            ValueError: unless t_train_min <= t_end < t_start <= 1 (a single noise level has t_end = t_start = 1).
        """
        first = 1.0 if spacing == "trailing" else self.t_first
        start, end = given = first if t_start is None else t_start, self.t_min if t_end is None else t_end
        if self.levels is not None:
            start, end = math.floor(self.levels * start + 1e-9), math.ceil(self.levels * end - 1e-9)
            start, end = start / self.levels, end / self.levels
        if start > 1 or end < self.t_train_min or start < end or (start == end and self.levels != 1):
            levels = f", with two of the {self.levels} levels between them" if self.levels else ""
            raise ValueError(
                "sampler.t_start={:g} and sampler.t_end={:g} must satisfy ".format(*given)
                + f"{self.t_train_min:g} <= t_end < t_start <= 1{levels}"
            )
        return start, end

    def timesteps(
        self,
        steps: int | None,
        spacing: Spacing = "uniform",
        rho: float = 7.0,
        t_start: float | None = None,
        t_end: float | None = None,
    ) -> Tensor:
        """The decreasing timesteps at which a sampler evaluates the network, float64 on the CPU, shape (steps,).

        They lie between t_start and t_end (None: those of `span`):

        - "uniform", "linspace": even in t, with both ends.  On a discrete process "linspace" rounds them to levels (as
          in diffusers), and so does "uniform" if alpha = 1; else "uniform" is DDIM's sequence, which may start below 1.
        - "quadratic": even in sqrt(t) (DPM-Solver's `time_quadratic`); on a discrete process DDIM's sequence.
        - "trailing": even in t from t_start, without t_end (Lin et al. 2023, Table 2).
        - "leading": every floor(N / steps)-th level from the lowest one (diffusers); discrete processes only.
        - "strided": every k-th level from the lowest one, with the smallest k that yields `steps` levels ("ddim50" in
          the official code of Nichol & Dhariwal 2021); discrete processes only.
        - "linear": even in t, also between discrete levels (Song et al. 2021, Table 1, P2000).
        - "log_snr": even in log(alpha/sigma) (Lu et al. 2022, Section 3.4).
        - "karras": even in (sigma/alpha)^(1/rho) (Karras et al. 2022, Eq. 5).

        steps=None takes every level of a discrete process, or 1000 times.  With steps=1, "uniform" and "quadratic"
        return t_end, the lowest noise (plain Langevin dynamics), and "trailing" returns t_start.

        Raises:
            ValueError: for less than 1 step (2 if both ends are included), more steps than levels, or as `span` does.
        """
        if spacing not in get_args(Spacing):
            raise ValueError(f"spacing={spacing!r} is unknown; allowed: {', '.join(get_args(Spacing))}")
        start, end = self.span(t_start, t_end, spacing)
        if spacing in get_args(EvenSpacing) or self.levels == 1:
            return self.even_timesteps(steps, spacing, start, end)
        steps = (self.levels or 1000) if steps is None else steps
        if steps < 2:
            raise ValueError(f"spacing={spacing} needs at least 2 sampler steps, got {steps}")
        ends = torch.tensor([start, end], dtype=torch.float64)
        u, log_snr = torch.linspace(0, 1, steps, dtype=torch.float64), self.log_snr(ends)
        if spacing == "linear":
            return torch.lerp(*ends, u)
        if spacing == "log_snr":
            value = torch.lerp(*log_snr, u)
        else:  # sigma / alpha = exp(-log_snr / 2)
            value = -2 * rho * torch.lerp(*(-log_snr / (2 * rho)).exp(), u).log()
        return torch.cat([ends[:1], self.time(value[1:-1]), ends[1:]])

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t."""
        return self.alpha(t), self.sigma(t)

    def marginal(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t, of shape (B, 1, ..., 1) or (), on the device and in the dtype of `like`."""
        alpha, sigma = self.alpha_sigma(t)
        return broadcast(alpha, like), broadcast(sigma, like)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps, of the shape of x0."""
        alpha, sigma = self.marginal(t, x0)
        return alpha * x0 + sigma * eps

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, variance) of q(x_t | x_s) = N(scale x_s, variance I) for s < t.

        scale = alpha_t / alpha_s,   variance = sigma_t^2 - scale^2 sigma_s^2
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.alpha_sigma(s), self.alpha_sigma(t)
        scale = alpha_t / alpha_s
        return scale, (sigma_t**2 - (scale * sigma_s) ** 2).clamp(min=0)

    def discretize(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, variance) of the method's discretised forward step from s to t; here the exact `transition`."""
        return self.transition(s, t)

    def posterior(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, variance) of q(x_s | x_t, x_0) = N(a x_t + b x_0, variance I); Ho et al. 2020, Eqs. 6 and 7.

            a = scale sigma_s^2 / sigma_t^2,   b = alpha_s v / sigma_t^2,   variance = v sigma_s^2 / sigma_t^2

        with (scale, v) = transition(s, t).
        """
        (scale, v), (alpha_s, sigma_s), sigma_t = self.transition(s, t), self.alpha_sigma(s), self.sigma(t)
        ratio = (sigma_s / sigma_t) ** 2
        return scale * ratio, alpha_s * v / sigma_t**2, v * ratio

    def reverse_variance(self, s: Tensor, t: Tensor, variance: Variance) -> Tensor:
        """Variance of the reverse step p(x_s | x_t): of the posterior (fixed_small) or q(x_t | x_s) (fixed_large).

        Raises:
            ValueError: for learned_range, which only the network knows.
        """
        if variance == "learned_range":
            raise ValueError("variance=learned_range is known to the network only: use loss=hybrid or a fixed one")
        return {"fixed_small": self.posterior(s, t)[2], "fixed_large": self.transition(s, t)[1]}[variance]


def learned(fraction: Any) -> Any:
    """The fraction of a learned range of variances; raises ValueError for a network that does not learn it."""
    if fraction is None:
        raise ValueError(
            "variance=learned_range needs a network that learns the variance, such as that of model=iddpm: choose "
            "fixed_large or fixed_small"
        )
    return fraction


def broadcast(value: Tensor, like: Tensor) -> Tensor:
    """A value (B,) or scalar as (B, 1, ...), on the device of `like` (B, ...) and in its dtype."""
    value = value.to(like.device, like.dtype)
    return value.reshape(-1, *(1,) * (like.dim() - 1)) if value.dim() else value
