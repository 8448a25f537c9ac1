"""Ancestral sampling: DDPM, DDIM, and steps of the reverse SDE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.process import Variance
from diffusion_lab.ranges import NonNegative, Positive, UnitInterval
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Step


@dataclass(frozen=True)
class Ancestral(Step):
    """Draws from p(x_s | x_t) = q(x_s | x_t, x_0 = x0_hat); Ho et al. 2020, Algorithm 2.

        x_s = (scale sigma_s^2 / sigma_t^2) x_t + (alpha_s v / sigma_t^2) x0_hat + sqrt(variance) z

    with scale = alpha_t / alpha_s and v = sigma_t^2 - scale^2 sigma_s^2.  `variance` is v sigma_s^2 / sigma_t^2
    ("fixed_small"; also Song et al. 2021, Eq. 47, for VE) or v ("fixed_large", beta_t between neighbouring levels;
    Song et al. 2021, Eq. 4, for VP), or predicted between the two ("learned_range", Nichol & Dhariwal 2021, Eq. 15).
    Classifier guidance of form "mean" adds variance * gradient (Dhariwal & Nichol 2021, Algorithm 1).
    """

    variance: Variance = "fixed_large"

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        (by_x, by_x0, _), d = p.posterior(s, t), denoise(x, t)
        variance = p.reverse_variance(s, t, self.variance, d.fraction)
        shift = 0.0 if d.mean_gradient is None else variance * d.mean_gradient()
        return by_x * x + by_x0 * d.x0 + shift + noise(variance**0.5)


def check_mean_gradient(denoiser: Denoiser, predictor: Any, corrector: Any = None) -> None:
    """Raise ValueError where guidance shifts the mean of ancestral steps, and a sampler makes other steps."""
    if denoiser.mean_gradient is not None and (corrector is not None or not isinstance(predictor, Ancestral)):
        raise ValueError(
            "ClassifierGuidance(form='mean') shifts the mean of ancestral steps: use sampler=ancestral, or form='score'"
        )


@dataclass(frozen=True)
class DDIM(Step):
    """Song, Meng & Ermon 2021 (DDIM), Eqs. 12 and 16: deterministic at eta = 0, DDPM's fixed-small at eta = 1.

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,   c = eta sqrt(posterior variance)
    """

    eta: UnitInterval = 0.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        d, c = denoise(x, t), self.eta * math.sqrt(p.posterior(s, t)[2])
        return p.alpha(s) * d.x0 + math.sqrt(p.sigma(s) ** 2 - c**2) * d.eps + noise(c)


def ancestral_step(n: float, n_s: float, eta: float) -> tuple[float, float]:
    """(down, up): noise-to-signal ratio to which to step without noise, and the noise to add, to arrive at n_s < n.

    up = min(n_s, eta sqrt(n_s^2 (n^2 - n_s^2) / n^2)),   down = sqrt(n_s^2 - up^2)
    """
    up = min(n_s, eta * n_s / n * math.sqrt(max(n**2 - n_s**2, 0.0)))
    return math.sqrt(n_s**2 - up**2), up


@dataclass(frozen=True)
class EulerAncestral(Step):
    """Euler's step in y = x / alpha on n = sigma / alpha, then noise (Katherine Crowson, k-diffusion).

        y_s = y + (down - n) eps_hat + s_noise up z,   (down, up) = ancestral_step(n, n_s, eta)

    With s_noise = 1 it is DDIM with the same eta.
    """

    eta: NonNegative = 1.0
    s_noise: Positive = 1.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        n, alpha_s = p.noise_to_signal(t), p.alpha(s)
        down, up = ancestral_step(n, p.noise_to_signal(s), self.eta)
        y = x / p.alpha(t) + (down - n) * denoise(x, t).eps
        return alpha_s * y + noise(alpha_s * self.s_noise * up)


@dataclass(frozen=True)
class ReverseDiffusion(Step):
    """Discretises the reverse SDE as the forward one, x_t = k x_s + sqrt(v) z; Song et al. 2021, Eq. 46.

        x_s = (2 - k) x_t + v score + sqrt(v) z,   (k, v) = process.discretize(s, t)

    With `probability_flow` the same step of the ODE (Eq. 13): half the score and no noise.
    """

    probability_flow: bool = False

    def check(self, p) -> None:
        if len(p.times) > 1:
            p.discretize(p.times[1], p.times[0])  # of all steps at once

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        k, v = p.discretize(s, t)
        drift, std = (v / 2, 0.0) if self.probability_flow else (v, math.sqrt(v))
        return (2 - k) * x + drift * denoise(x, t).score + noise(std)


@dataclass(frozen=True)
class EulerMaruyama(Step):
    """Euler-Maruyama on the reverse SDE dx = (f x - g^2 score) dt + g dw; Song et al. 2021, Eq. 6 and Appendix G.

        x_s = (1 - f h) x_t + (g^2 + w^2) / 2 h score + w sqrt(h) z,   h = t - s

    With w = g.  Every diffusion coefficient w gives the same law of x_s as h goes to 0 (Albergo, Boffi &
    Vanden-Eijnden 2023, arXiv:2303.08797; Ma et al. 2024, arXiv:2401.08740); at w = 0 it is Euler's step of the
    probability flow (Song et al. 2021, Eq. 13).  That of flow matching's process is infinite at t = 1, where
    "sigma", which is g^2 alpha for straight paths, and "sine" are finite.

    Args:
        probability_flow: w = 0.
        diffusion: w^2 / diffusion_scale: g^2 ("process"), 2 sigma(t) ("sigma"), sin^2(pi t) ("sine") or 1 ("constant").
        diffusion_scale: factor of w^2.
    """

    probability_flow: bool = False
    diffusion: Literal["process", "sigma", "sine", "constant"] = "process"
    diffusion_scale: Positive = 1.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, g = t - s, p.g(t)
        variance = 0.0 if self.probability_flow else self.diffusion_scale * DIFFUSION[self.diffusion](p, t) * h
        return (1 - p.f(t) * h) * x + (g**2 * h + variance) / 2 * denoise(x, t).score + noise(math.sqrt(variance))


DIFFUSION: dict[str, Callable[[ScalarProcess, float], float]] = {
    "process": lambda p, t: p.g(t) ** 2,
    "sigma": lambda p, t: 2 * p.sigma(t),
    "sine": lambda p, t: math.sin(math.pi * t) ** 2,
    "constant": lambda p, t: 1.0,
}
"""(process, t) -> the variance of the noise for a unit of time, w^2."""
