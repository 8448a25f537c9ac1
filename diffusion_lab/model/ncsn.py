"""NCSN and NCSNv2: Song & Ermon 2019 (arXiv:1907.05600) and 2020 (arXiv:2006.09011)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.base import Model
from diffusion_lab.model.options import Likelihood, Loss, ModelOptions
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Schedule
from diffusion_lab.ranges import Count, Levels, checked
from diffusion_lab.sampler import Sampler

NCSN_ROW = Parameterization(output="score", c_noise="level_from_top", low=0.0, high=1.0)
NCSNV2_ROW = Parameterization(output="scaled_score", c_noise="nothing", low=0.0, high=1.0)


class NCSN(Model):
    """A discrete process with `levels` sigmas, a network for the score conditioned on the level, images in [0, 1].

    The published method weights denoising score matching by sigma^2 (Eq. 6), which gives 1/2 sum |eps_hat - eps|^2, and
    samples by annealed Langevin dynamics (Algorithm 1).
    """

    row = NCSN_ROW

    @checked
    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        schedule: Schedule,
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | Likelihood | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        shape: Sequence[Count] = (3, 32, 32),
        grey_levels: Levels | None = 256,
        levels: Levels = 10,
        **options: Unpack[ModelOptions],
    ) -> None:
        denoiser = Denoiser(network, DiscreteProcess(schedule, levels), self.row)
        super().__init__(denoiser, loss, sampler, likelihood, optimizer, shape, grey_levels, **options)


class NCSNv2(NCSN):
    """NCSN with an unconditional network that outputs sigma times the score (Technique 3).

    `process.techniques` computes the largest sigma, the number of levels and the step size for a data set (Techniques
    1, 2 and 4); the EMA callback averages the weights (Technique 5).
    """

    row = NCSNV2_ROW
