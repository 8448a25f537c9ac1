"""Gaussian data with independent coordinates: optimal denoiser, flow, and distribution of samples, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler.engine import Written
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Prediction, coefficients


@dataclass(frozen=True)
class Gaussian:
    """x_0 ~ N(mean, variance), (D,) each, float64; x_t ~ N(alpha mean, alpha^2 variance + sigma^2)."""

    mean: Tensor
    variance: Tensor

    def moments(self, process: NoiseProcess, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_t, (D,)."""
        alpha, sigma = process.alpha_sigma(t)
        return alpha * self.mean, (alpha**2 * self.variance + sigma**2).sqrt()

    def eps_factor(self, alpha: Any, sigma: Any, consistency: bool = False) -> Tensor:
        """a in eps = a (x - alpha mean), (D,): of the optimal denoiser, or of the consistency function.

        a = sigma / (alpha^2 variance + sigma^2), where x_0 is the mean of the data given x; or
        a = (1 - k) / sigma,  k^2 = alpha^2 variance / (alpha^2 variance + sigma^2), where x_0 is the end of the
        probability flow through x (Song et al. 2023, Definition 1).
        """
        data = alpha**2 * self.variance
        if consistency:
            return (1 - (data / (data + sigma**2)).sqrt()) / sigma
        return sigma / (data + sigma**2)

    def denoiser(self, process: NoiseProcess, consistency: bool = False) -> Denoiser:
        """The optimal denoiser, or the consistency function, for points (B, D)."""

        def eps(x: Tensor, c_noise: Tensor) -> Tensor:
            one = c_noise[:1] if (c_noise == c_noise[0]).all() else c_noise  # samplers have one time for all
            t = one[:, None].double()
            t = (t + 1) / process.levels if process.levels else t / 999
            alpha, sigma = process.alpha_sigma(t)
            return (x - (alpha * self.mean).to(x)) * self.eps_factor(alpha, sigma, consistency).to(x)

        return Denoiser(eps, process, Parameterization("eps", "level" if process.levels else "time_999"))

    def flow(self, process: NoiseProcess, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Map x (B, D) from t to s by the probability flow: standardise it at t, rescale it at s."""
        (mean_t, std_t), (mean_s, std_s) = self.moments(process, t), self.moments(process, s)
        return (x - mean_t) / std_t * std_s + mean_s


class GaussianLaw(Written):
    """Computes the exact distribution of a sampler's states on Gaussian data, in float64.

    Score and x_0 are affine in x, so that every state is Gaussian: a row of means, and a row of weights for each noise
    drawn so far.  No Monte Carlo sampling is needed.

    Args:
        rows: at least one more than the number of noises that the sampler draws.
        consistency: predict x_0 by the consistency function.
    """

    def __init__(
        self, data: Gaussian, denoiser: Denoiser, times: Tensor, rows: int = 5_000, consistency: bool = False
    ) -> None:
        like = torch.zeros(rows, len(data.mean), dtype=torch.float64)
        super().__init__(denoiser, ScalarProcess(denoiser.process, times), like, None)
        self.data, self.drawn, self.consistency = data, 1, consistency

    def begin(self) -> Tensor:
        """Return the distribution of the noised data at the first time."""
        mean, std = self.data.moments(self.denoiser.process, torch.tensor(self.p.times[0], dtype=torch.float64))
        x = self.noise() * std
        x[0] = mean
        return x

    def noise(self, std: float = 1.0) -> Tensor:
        z = torch.zeros_like(self.like)
        if std:
            self.drawn += 1
            z[self.drawn - 1] = std
        return z

    def predict(self, x: Tensor, t: float, thresholded: bool) -> Prediction:
        alpha, sigma = self.p.alpha_sigma(t)
        centred = x.clone()
        centred[0] -= alpha * self.data.mean
        eps = self.data.eps_factor(alpha, sigma, self.consistency) * centred
        return Prediction(t, x, eps, coefficients(alpha, sigma, self.denoiser.parameterization.eps))

    @staticmethod
    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of a state, (D,)."""
        return x[0], x[1:].square().sum(0).sqrt()
