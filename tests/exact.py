"""Exact denoisers: networks without weights, for the analytic targets of reference/analytic.py."""

from __future__ import annotations

import analytic
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, NoiseProcess


class ExactNetwork:
    """The optimal eps of a target in float64, given the level of a discrete process or 999 t of a continuous one."""

    def __init__(self, target: analytic.Mixture, process: NoiseProcess) -> None:
        self.target, self.process = target, process

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        discrete = isinstance(self.process, DiscreteProcess)
        t = (c_noise.double() + 1) / self.process.levels if discrete else c_noise.double() / 999
        return self.target.eps(x, self.process.alpha(t), self.process.sigma(t))


def exact_denoiser(target: analytic.Mixture, process: NoiseProcess) -> Denoiser:
    c_noise = "level" if isinstance(process, DiscreteProcess) else "time_999"
    return Denoiser(ExactNetwork(target, process), process, Parameterization(output="eps", c_noise=c_noise))
