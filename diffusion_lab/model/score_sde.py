"""ScoreSDE: Song et al. 2021, Score-Based Generative Modeling through SDEs (arXiv:2011.13456)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.base import Model
from diffusion_lab.model.options import Likelihood, Loss, ModelOptions
from diffusion_lab.parameterization import NoiseConditioning, Output, Parameterization
from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import Count, Finite, Levels, NonNegative, Positive, checked
from diffusion_lab.sampler import Sampler


class ScoreSDE(Model):
    """Any noise process together with its row of the parameterization table (conf/sde).

    VE: sigma times the score, c_noise = log sigma, images in [0, 1]; VP and sub-VP: eps, c_noise = 999 t, images in
    [-1, 1].  The discrete variants (SMLD, DDPM) are discrete processes with the same schedules.  EDM is the VE process
    with its preconditioning (a `boundary` makes it that of consistency models), and flow matching a `ProbabilityPath`.
    """

    ORDERED: ClassVar = (("low", "high"),)

    @checked
    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        process: NoiseProcess,
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | Likelihood | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        shape: Sequence[Count] = (3, 32, 32),
        grey_levels: Levels | None = 256,
        output: Output = "eps",
        c_noise: NoiseConditioning = "time_999",
        low: Finite = -1.0,
        high: Finite = 1.0,
        unit_input: bool = False,
        sigma_data: Positive | None = None,
        boundary: NonNegative = 0.0,
        **options: Unpack[ModelOptions],
    ) -> None:
        row = Parameterization(output, c_noise, low, high, unit_input, sigma_data=sigma_data, boundary=boundary)
        denoiser = Denoiser(network, process, row)
        super().__init__(denoiser, loss, sampler, likelihood, optimizer, shape, grey_levels, **options)
