"""The optimum of denoising score matching on a finite data set: the score of its Parzen density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


@dataclass(frozen=True)
class Parzen:
    """q_t(x) = 1/n sum_i N(x; alpha x_i, sigma^2 I), the density of n noised data points (n, ...); Vincent 2011.

    Its score is the minimiser of the denoising loss over all functions.  Its samplers end at the x_i themselves.
    """

    points: Tensor

    def log_density(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """log q_t(x) of x (B, ...), (B,), in nats; alpha and sigma are numbers or (B,)."""
        return self._log_parts(x, alpha, sigma).logsumexp(1) - math.log(len(self.points))

    def x0(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """E[x_0 | x], the mean of the points with weights p(i | x), of the shape of x (B, ...)."""
        weights = self._log_parts(x, alpha, sigma).softmax(1)
        return (weights @ self.points.to(x).flatten(1)).reshape(x.shape)

    def denoiser(self, process: NoiseProcess) -> Denoiser:
        """The optimal denoiser, eps = (x - alpha E[x_0 | x]) / sigma."""

        def x0(x: Tensor, c_noise: Tensor) -> Tensor:
            alpha, sigma = process.alpha_sigma(c_noise.double() / 999)
            return self.x0(x, alpha.to(x), sigma.to(x))

        return Denoiser(x0, process, Parameterization("x0", "time_999", bounded=False))

    def _log_parts(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """log N(x; alpha x_i, sigma^2 I), (B, n)."""
        alpha, sigma = (torch.as_tensor(one, dtype=x.dtype, device=x.device).reshape(-1, 1) for one in (alpha, sigma))
        variance, means = sigma**2, alpha[..., None] * self.points.to(x).flatten(1)
        distance = (x.flatten(1)[:, None] - means).square().sum(2)
        return -distance / (2 * variance) - x[0].numel() / 2 * torch.log(2 * math.pi * variance)
