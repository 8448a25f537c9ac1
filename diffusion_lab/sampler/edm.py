"""Karras et al. 2022 (EDM) for any process, in y = x / alpha on n = sigma / alpha, where dy/dn = eps; and Restart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from diffusion_lab.ranges import NonNegative, NonNegativeInt, Positive
from diffusion_lab.sampler.step import Solver


def heun(p, x, t, s, denoise) -> Any:
    """Heun's second-order step from t to s; Karras et al. 2022, Algorithm 1."""
    y, h = x / p.alpha(t), p.noise_to_signal(s) - p.noise_to_signal(t)
    d = denoise(x, t).eps
    d_s = denoise(p.alpha(s) * (y + h * d), s).eps
    return p.alpha(s) * (y + h / 2 * (d + d_s))


def noised(p, x, t, t_hat, s_noise, noise) -> Any:
    """x at a later time: y_hat = y + s_noise sqrt(n_hat^2 - n^2) z."""
    std = p.alpha(t_hat) * s_noise * math.sqrt(p.noise_to_signal(t_hat) ** 2 - p.noise_to_signal(t) ** 2)
    return p.alpha(t_hat) / p.alpha(t) * x + noise(std)


@dataclass(frozen=True)
class EDM(Solver):
    """Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, in y = x / alpha and n = sigma / alpha.

        n_hat = (1 + gamma) n,   y_hat = y + s_noise sqrt(n_hat^2 - n^2) z
        y_s = y_hat + (n_s - n_hat) eps_hat,
        order 2:  y_s = y_hat + (n_s - n_hat) (eps_hat + eps_s) / 2     with eps_s at that first y_s

    gamma = min(churn / steps, sqrt(2) - 1) for n in [s_min, s_max], else 0, at every step, also at the last one, to
    n = 0.  A continuous process knows times later than t = 1, so that the first step churns too, as published; discrete
    levels end there, and n_hat is at most their largest (NVlabs' `round_sigma` takes the nearest level).  Order 1
    without churn is DDIM; order 2 is Heun's method, two evaluations a step.
    """

    order: Literal[1, 2] = 2
    churn: NonNegative = 0.0
    s_min: NonNegative = 0.0
    s_max: Annotated[float, Ge(0)] = math.inf
    s_noise: Positive = 1.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        x, t = self.churned(p, x, t, noise)
        if self.order == 2:
            return heun(p, x, t, s, denoise)
        h = p.noise_to_signal(s) - p.noise_to_signal(t)
        return p.alpha(s) * (x / p.alpha(t) + h * denoise(x, t).eps)

    def last(self, p, x, t, denoise, noise, past) -> Any:
        """Euler's step to n = 0, which gives x_0 as predicted after the churn."""
        return denoise(*self.churned(p, x, t, noise)).x0

    def churned(self, p, x, t, noise) -> tuple[Any, float]:
        """(x_hat, t_hat): x with noise added, and the later time to which it belongs."""
        n = p.noise_to_signal(t)
        gamma = min(self.churn / len(p.times), math.sqrt(2) - 1) if self.s_min <= n <= self.s_max else 0.0
        n_hat = min((1 + gamma) * n, max(p.noise_to_signal(p.times[0]), p.noise_to_signal(p.t_max)))
        if n_hat <= n:
            return x, t
        t_hat = p.time(-math.log(n_hat))
        return noised(p, x, t, t_hat, self.s_noise, noise), t_hat


@dataclass(frozen=True)
class Restart(Solver):
    """Restart sampling: Heun's method, with noise added back and the last interval solved again.

    Xu et al. 2023 (arXiv:2306.14878), Algorithm 1: at the time of the grid whose n = sigma / alpha is nearest to `low`
    (as in the authors' program), `repeats` times

        y <- y + s_noise sqrt(high^2 - n^2) z,   then Heun's steps from n = high back to n, on EDM's grid of `steps`

    Args:
        low, high: noise-to-signal ratios of the interval, t_min and t_max in the paper.
        steps: times of the grid inside the interval, both ends counted.
        repeats: K in the paper.
        rho: of the grid inside the interval.
    """

    ORDERED: ClassVar = (("low", "high"),)

    low: Positive = 0.06
    high: Positive = 0.30
    steps: Annotated[int, Ge(2)] = 6
    repeats: NonNegativeInt = 2
    s_noise: Positive = 1.0
    rho: Positive = 7.0

    def check(self, p) -> None:
        super().check(p)
        n = p.noise_to_signal(self.nearest(p))
        if n >= self.high and self.nearest(p) != p.times[0] and self.repeats:
            raise ValueError(
                f"restart goes back to sigma / alpha = {self.high:.3g}, but the time nearest to low = {self.low:.3g} "
                f"has {n:.3g}: use more sampler.steps, or a higher `high`"
            )

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        x = heun(p, x, t, s, denoise)
        if s == self.nearest(p):
            times = self.times(p, s)
            for _ in range(self.repeats):
                x = noised(p, x, s, times[0], self.s_noise, noise)
                for late, early in pairwise(times):
                    x = heun(p, x, late, early, denoise)
        return x

    def nearest(self, p) -> float:
        """The timestep nearest to `low`."""
        return min(p.times, key=lambda t: abs(p.noise_to_signal(t) - self.low))

    def times(self, p, s: float) -> list[float]:
        """Times from n = high down to s, even in n^(1/rho)."""
        high, low = (n ** (1 / self.rho) for n in (self.high, p.noise_to_signal(s)))
        inner = [(high + i / (self.steps - 1) * (low - high)) ** self.rho for i in range(self.steps - 1)]
        return [*(p.time(-math.log(n)) for n in inner), s]
