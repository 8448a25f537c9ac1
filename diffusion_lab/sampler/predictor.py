"""Predictors: one reverse step from t to s < t, x_s = a x_t + b x0_hat + c z with z ~ N(0, I).

A predictor is the three numbers (a, b, c) of each step, so an equation of a paper is all there is to write.  They are
computed once for all steps, in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess, Variance


class Predictor(ABC):
    """A reverse step that is linear in x_t, the estimate of x_0 and fresh noise."""

    @abstractmethod
    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) of the steps t -> s, each of the shape of t, float64."""


class Ancestral(Predictor):
    """Draws from p(x_s | x_t) = q(x_s | x_t, x_0 = x0_hat); Ho et al. 2020, Algorithm 2.

        x_s = (scale sigma_s^2 / sigma_t^2) x_t + (alpha_s v / sigma_t^2) x0_hat + sqrt(variance) z

    with scale = alpha_t / alpha_s and v = sigma_t^2 - scale^2 sigma_s^2.  `variance` is v sigma_s^2 / sigma_t^2
    ("fixed_small") or v ("fixed_large", beta_t between neighbouring levels).  The step to clean data adds no noise.
    """

    def __init__(self, variance: Variance = "fixed_large") -> None:
        self.variance = variance

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, _ = process.posterior(s, t)
        variance = process.reverse_variance(s, t, self.variance)
        return a, b, torch.where(process.sigma(s) > 0, variance, 0).sqrt()


class DDIM(Predictor):
    """Song, Meng & Ermon 2021 (DDIM), Eqs. 12 and 16: deterministic at eta = 0, DDPM's fixed-small at eta = 1.

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,   c = eta sqrt(posterior variance)
    """

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {eta}")
        self.eta = eta

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.eta * process.posterior(s, t)[2].sqrt()
        a = (process.sigma(s) ** 2 - c**2).sqrt() / process.sigma(t)
        return a, process.alpha(s) - a * process.alpha(t), c
