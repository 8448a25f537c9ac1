"""SDEs dx = f(t) x dt + g(t) dw: VP, sub-VP and VE (Song et al. 2021, Section 3.4), and those of any schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.process.base import EvenSpacing, NoiseProcess, Variance
from diffusion_lab.process.schedule import BetaSchedule, Geometric, Schedule


class SDE(NoiseProcess):
    """A process with continuous training times, uniform on [1e-5, 1] as published for VP, sub-VP and VE."""

    CONTINUOUS: ClassVar = True
    t_max = 2.0

    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(batch, device=device, dtype=torch.float32, generator=generator)
        return self.t_train_min + (1 - self.t_train_min) * u

    def even_timesteps(self, steps: int | None, spacing: EvenSpacing, start: float, end: float) -> Tensor:
        steps = 1000 if steps is None else steps
        if steps < 1:
            raise ValueError(f"sampler steps must be at least 1, got {steps}")
        if spacing in ("leading", "strided"):
            raise ValueError(f"spacing={spacing} needs a process with discrete levels: use uniform")
        if spacing == "trailing":
            return torch.linspace(start, end, steps + 1, dtype=torch.float64)[:-1]
        power = 2 if spacing == "quadratic" else 1
        timesteps = (
            torch.linspace(end ** (1 / power), start ** (1 / power), steps, dtype=torch.float64).flip(0) ** power
        )
        timesteps[0], timesteps[-1] = start, end  # exactly; with one step: t_end
        return timesteps

    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        """g^2 / (2 sigma^2), the continuous limit, equal for both variances (Song et al. 2021b, Theorem 1)."""
        t = t.double()
        return self.g(t) ** 2 / (2 * self.sigma(t) ** 2)


class VP(SDE):
    """Variance preserving: f = -beta(t)/2, g = sqrt(beta(t)); Song et al. 2021, Eqs. 11 and 29."""

    t_min = 1e-3

    def __init__(self, schedule: BetaSchedule) -> None:
        super().__init__()
        _require(schedule, BetaSchedule, "VP", "linear, cosine or sigmoid")
        self.schedule = schedule

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.schedule.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t).sqrt()

    def discretize(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = sqrt(1 - beta_i) x_s + sqrt(beta_i) z with beta_i = beta(t) (t - s); Song et al. 2021, Eq. 10.

        Raises:
            ValueError: if a step is so long that beta_i >= 1.
        """
        step = self.schedule.beta(t) * (t - s)
        if (step >= 1).any():
            raise ValueError(
                f"steps of VP's discretisation are too long, beta_i = {step.max():.3g} >= 1: use more sampler.steps"
            )
        return (1 - step).sqrt(), step


class SubVP(VP):
    """Sub-variance preserving: VP's drift, sigma = 1 - abar, g = sqrt(beta (1 - abar^2)); Song et al. 2021, Eq. 14."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.schedule.log_abar(t))

    def g(self, t: Tensor) -> Tensor:
        return (self.schedule.beta(t) * -torch.expm1(2 * self.schedule.log_abar(t))).sqrt()

    def discretize(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = (1 + f(t) h) x_s + g(t) sqrt(h) z with h = t - s, the Euler step of the official code."""
        return 1 + self.f(t) * (t - s), self.g(t) ** 2 * (t - s)


class VE(SDE):
    """Variance exploding: f = 0, g = sigma(t) sqrt(2 log(sigma_max / sigma_min)); Song et al. 2021, Eqs. 9 and 30.

    As in the official code, sigma_min^2 is not subtracted from sigma(t)^2, and the prior is N(0, sigma_max^2).
    """

    t_min, keeps_signal = 1e-5, True

    def __init__(self, schedule: Geometric) -> None:
        super().__init__()
        _require(schedule, Geometric, "VE", "geometric")
        self.schedule, self.prior_std = schedule, schedule.prior_std

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        rate = torch.tensor(self.schedule.sigma_max / self.schedule.sigma_min, dtype=torch.float64).log()
        return self.schedule.sigma(t) * (2 * rate).sqrt().to(t)

    def time(self, log_snr: Tensor, latest: float = 1.0) -> Tensor:
        rate = math.log(self.schedule.sigma_max / self.schedule.sigma_min)
        return ((-0.5 * log_snr - math.log(self.schedule.sigma_min)) / rate).clamp(0.0, latest)


class ProbabilityPath(SDE):
    """x = alpha(t) x_0 + sigma(t) eps of any schedule, the path of flow matching; Lipman et al. 2023, Eq. 10.

        f = alpha' / alpha,   g^2 = 2 sigma (sigma' - f sigma)

    The derivatives are those of automatic differentiation.  Where alpha(1) is almost 0, solvers of higher order and
    steps of the SDE cannot start at t = 1: `t_first` is where sigma / alpha is that of the published VP SDE.
    """

    t_max = 1.0
    RATIOS: ClassVar = (5e-3, 150.0)
    """sigma / alpha at t_min, if it is smaller at t = 0, and at t_first."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        _require(schedule, Schedule, "ProbabilityPath", "rectified, linear, cosine, sigmoid or geometric")
        self.schedule, self.prior_std = schedule, schedule.prior_std
        self.keeps_signal = schedule.alpha(torch.ones(())).item() == 1
        t_min, t_first = self.time(-2 * torch.tensor(self.RATIOS, dtype=torch.float64).log()).tolist()
        self.t_min, self.t_first = max(t_min, self.t_train_min), 1.0 if self.keeps_signal else t_first

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        return _rate(self.schedule.alpha, t) / self.schedule.alpha(t)

    def g(self, t: Tensor) -> Tensor:
        sigma = self.schedule.sigma(t)
        return (2 * sigma * (_rate(self.schedule.sigma, t) - self.f(t) * sigma)).sqrt()


def _rate(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of a function of time at t, of the shape of t."""
    with torch.inference_mode(False), torch.enable_grad():
        at = t.detach().clone().requires_grad_()
        value = function(at) + 0 * at  # a constant too
        return torch.autograd.grad(value.sum(), at)[0]


def _require(schedule: object, family: type, process: str, allowed: str) -> None:
    if not isinstance(schedule, family):
        raise ValueError(f"{process} needs schedule={allowed}; got {type(schedule).__name__}")
