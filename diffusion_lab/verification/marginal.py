"""The exact denoiser of data whose noised density has a known score."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


class NoisedDensity(Protocol):
    """Data with a known score of alpha x_0 + sigma eps, such as those of `data.toy2d_density`."""

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """grad log p(x) of the noised data, of the shape of x (B, ...), for alpha and sigma (B,)."""


def denoiser_of(density: NoisedDensity, process: NoiseProcess) -> Denoiser:
    """The denoiser with score(x, t) = grad log p_t(x): samplers and likelihoods then have their own errors only."""

    def score(x: Tensor, c_noise: Tensor) -> Tensor:
        alpha, sigma = process.alpha_sigma(c_noise.double() / 999)
        return density.score(x, alpha.to(x), sigma.to(x))

    return Denoiser(score, process, Parameterization("score", "time_999", bounded=False))
