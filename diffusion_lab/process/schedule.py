"""Noise schedules: alpha(t) and sigma(t).

*Beta* schedules (linear, cosine, sigmoid) preserve the variance, alpha(t)^2 + sigma(t)^2 = 1, and are defined by
abar(t) = alpha(t)^2.  *Sigma* schedules (geometric) have alpha = 1 and an increasing sigma(t).  The *rectified*
schedule of flow matching interpolates between data and noise, alpha(t) + sigma(t) = 1.  All define a continuous process
(`alpha`, `sigma`) and N discrete levels (`noise_levels`).  Times are in [0, 1]; t = 0 is data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from diffusion_lab.ranges import Finite, Positive, checked

BETA_CLIP = 0.999
"""Largest beta of a discrete level (Nichol & Dhariwal 2021, Section 3.2)."""


class Schedule(ABC):
    """Interface of a schedule: alpha and sigma as functions of time, and their values at N discrete noise levels."""

    prior_std: float
    """Standard deviation of the prior N(0, prior_std^2 I) of x_1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale alpha(t), of the shape of t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale sigma(t), of the shape of t."""

    @abstractmethod
    def alpha_of(self, ratio: Tensor) -> Tensor:
        """alpha as a function of ratio = sigma^2/alpha^2, by the constraint of the schedule's family."""

    @abstractmethod
    def rate_of_log_alpha(self, ratio: Tensor) -> Tensor:
        """d log alpha / d ratio, with ratio = sigma^2/alpha^2."""

    def __init_subclass__(cls) -> None:
        if "ladder" in vars(cls):  # its name in the first edition
            cls.noise_levels = cls.ladder

    @abstractmethod
    def noise_levels(self, levels: int) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at the levels 1..N, each of shape (N,), float64."""


class BetaSchedule(Schedule):
    """A variance-preserving schedule, defined by log abar(t) and beta(t) = -d log abar(t) / dt.

        alpha(t) = sqrt(abar(t)),   sigma(t) = sqrt(1 - abar(t))

    For the cosine and the sigmoid abar(1) = 0, where beta is infinite.  `beta_max` bounds beta: after the time at which
    beta reaches it, log abar continues with this slope.  The default, 999, is the continuous counterpart of the
    published clip beta_i <= 0.999 at 1000 levels.
    """

    prior_std = 1.0

    @checked
    def __init__(self, beta_max: Annotated[float, Gt(0)] = math.inf) -> None:
        self.beta_limit = float(beta_max)
        self.t_limit = 1.0 if math.isinf(beta_max) else self._first_time_at(beta_max)

    @abstractmethod
    def free_log_abar(self, t: Tensor) -> Tensor:
        """log abar(t) of the formula, before the bound on beta."""

    @abstractmethod
    def free_beta(self, t: Tensor) -> Tensor:
        """beta(t) of the formula, before the bound on beta."""

    def _first_time_at(self, beta: float) -> float:
        """The time at which the increasing beta(t) reaches `beta`, by bisection; 1 if it never does."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            below = self.free_beta(torch.tensor(middle, dtype=torch.float64)).item() < beta
            low, high = (middle, high) if below else (low, middle)
        return high

    def log_abar(self, t: Tensor) -> Tensor:
        """log alpha(t)^2, of the shape of t."""
        if self.t_limit >= 1:
            return self.free_log_abar(t)
        return self.free_log_abar(t.clamp(max=self.t_limit)) - self.beta_limit * (t - self.t_limit).clamp(min=0)

    def beta(self, t: Tensor) -> Tensor:
        """-d log abar / dt, the beta(t) of the VP SDE (Song et al. 2021, Eq. 11)."""
        return self.free_beta(t.clamp(max=self.t_limit)).clamp(max=self.beta_limit)

    def alpha(self, t: Tensor) -> Tensor:
        return (0.5 * self.log_abar(t)).exp()

    def sigma(self, t: Tensor) -> Tensor:
        # expm1: 1 - exp(.) loses 1 % of sigma at t = 1e-5 in float32.
        return (-torch.expm1(self.log_abar(t))).sqrt()

    def alpha_of(self, ratio: Tensor) -> Tensor:
        return (1 + ratio).rsqrt()

    def rate_of_log_alpha(self, ratio: Tensor) -> Tensor:
        return -0.5 / (1 + ratio)

    def betas(self, levels: int) -> Tensor:
        """Discrete betas, beta_i = min(1 - abar(i/N) / abar((i-1)/N), 0.999), shape (N,), float64.

        Nichol & Dhariwal 2021, Section 3.2.
        """
        log_abar = self.free_log_abar(torch.arange(levels + 1, dtype=torch.float64) / levels)
        return (-torch.expm1(log_abar.diff())).clamp(max=BETA_CLIP)

    def noise_levels(self, levels: int) -> tuple[Tensor, Tensor]:
        log_abar = torch.log1p(-self.betas(levels)).cumsum(0)
        return (0.5 * log_abar).exp(), (-torch.expm1(log_abar)).sqrt()


class Linear(BetaSchedule):
    """beta(t) = beta_min + t (beta_max - beta_min); Ho et al. 2020, Section 4, and Song et al. 2021, Eq. 32.

        log abar(t) = -t beta_min - t^2 (beta_max - beta_min) / 2

    The discrete betas are linspace(beta_min / N, beta_max / N, N): the published 1e-4 ... 0.02 at N = 1000, and the
    same process in other steps at another N (code of Nichol & Dhariwal 2021).
    """

    ORDERED: ClassVar = (("beta_min", "beta_max"),)

    @checked
    def __init__(self, beta_min: Positive = 0.1, beta_max: Positive = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__()

    def free_log_abar(self, t: Tensor) -> Tensor:
        return -t * self.beta_min - 0.5 * t**2 * (self.beta_max - self.beta_min)

    def free_beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def betas(self, levels: int) -> Tensor:
        return torch.linspace(self.beta_min / levels, self.beta_max / levels, levels, dtype=torch.float64).clamp(
            max=BETA_CLIP
        )


class Cosine(BetaSchedule):
    """abar(t) = cos^2(pi/2 (t + s) / (1 + s)) / cos^2(pi/2 s / (1 + s)); Nichol & Dhariwal 2021, Eq. 17."""

    @checked
    def __init__(self, s: Positive = 0.008, beta_max: Annotated[float, Gt(0)] = 999.0) -> None:
        self.s = s
        super().__init__(beta_max)

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def free_log_abar(self, t: Tensor) -> Tensor:
        start = math.cos(self.s / (1 + self.s) * math.pi / 2)
        return 2 * (self._angle(t).cos() / start).log()

    def free_beta(self, t: Tensor) -> Tensor:
        return math.pi / (1 + self.s) * self._angle(t).tan()


class Sigmoid(BetaSchedule):
    """abar(t) = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), S(u) = sigmoid(u / tau).

    Jabri, Fleet & Chen 2022 (arXiv:2212.11972), Algorithm 1.  A smaller `tau` is steeper in the middle.
    """

    ORDERED: ClassVar = (("start", "end"),)

    @checked
    def __init__(
        self,
        start: Finite = -3.0,
        end: Finite = 3.0,
        tau: Positive = 1.0,
        beta_max: Annotated[float, Gt(0)] = 999.0,
    ) -> None:
        self.start, self.end, self.tau = start, end, tau
        super().__init__(beta_max)

    def _gap(self, t: Tensor) -> Tensor:
        """S(end) - S(u(t)), by the difference formula of tanh, which is accurate near t = 1."""
        u, end = (self.start + t * (self.end - self.start)) / (2 * self.tau), self.end / (2 * self.tau)
        return 0.5 * torch.sinh(end - u) / (math.cosh(end) * torch.cosh(u))

    def free_log_abar(self, t: Tensor) -> Tensor:
        return (self._gap(t) / self._gap(torch.zeros_like(t))).log()

    def free_beta(self, t: Tensor) -> Tensor:
        s = torch.sigmoid((self.start + t * (self.end - self.start)) / self.tau)
        return s * (1 - s) * (self.end - self.start) / self.tau / self._gap(t)


class Geometric(Schedule):
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t with alpha = 1; Song et al. 2021, Eq. 30.

    The discrete levels sigma_min = sigma_1 < ... < sigma_N = sigma_max have a constant ratio (Song & Ermon 2019,
    Section 4).
    """

    ORDERED: ClassVar = (("sigma_min", "sigma_max"),)

    @checked
    def __init__(self, sigma_min: Positive = 0.01, sigma_max: Positive = 50.0) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = float(sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def alpha_of(self, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio)

    def rate_of_log_alpha(self, ratio: Tensor) -> Tensor:
        return torch.zeros_like(ratio)

    def noise_levels(self, levels: int) -> tuple[Tensor, Tensor]:
        sigma = torch.linspace(math.log(self.sigma_min), math.log(self.sigma_max), levels, dtype=torch.float64).exp()
        return torch.ones_like(sigma), sigma


class Rectified(Schedule):
    """alpha(t) = 1 - t, at least alpha_min, and sigma(t) = t: straight lines; Lipman et al. 2023, Liu et al. 2023."""

    prior_std = 1.0

    @checked
    def __init__(self, alpha_min: Annotated[float, Gt(0), Lt(1)] = 1e-5) -> None:
        self.alpha_min = alpha_min

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t + self.alpha_min * t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_of(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + (1 - self.alpha_min) * ratio.sqrt())

    def rate_of_log_alpha(self, ratio: Tensor) -> Tensor:
        return -(1 - self.alpha_min) * self.alpha_of(ratio) / (2 * ratio.sqrt())

    def noise_levels(self, levels: int) -> tuple[Tensor, Tensor]:
        t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
        return self.alpha(t), t
