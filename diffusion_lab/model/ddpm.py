"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv:2006.11239)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.base import Model
from diffusion_lab.model.options import Likelihood, Loss, ModelOptions
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Schedule
from diffusion_lab.ranges import Count, Levels, checked
from diffusion_lab.sampler import Sampler


class DDPM(Model):
    """A discrete process with `levels` betas, a network conditioned on the level, and images in [-1, 1].

    The published method predicts eps with L_simple (Eq. 14) and uses ancestral sampling with variance beta_t
    ("fixed_large").  `output` selects another prediction; "score" is the score scaled by sigma, -eps.

    With `learned_range` the network, of twice as many output channels, predicts the variance of reverse steps as well
    (IDDPM: Nichol & Dhariwal 2021); its program conditions the network on "level_of_1000", the level times 1000 / T.
    """

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
        levels: Levels = 1000,
        output: Literal["eps", "x0", "v", "score"] = "eps",
        learned_range: bool = False,
        c_noise: Literal["level", "level_of_1000"] = "level",
        **options: Unpack[ModelOptions],
    ) -> None:
        prediction = {"eps": "eps", "x0": "x0", "v": "v", "score": "scaled_score"}[output]
        row = Parameterization(
            output=prediction, c_noise=c_noise, low=-1.0, high=1.0, unit_input=True, learned_range=learned_range
        )
        denoiser = Denoiser(network, DiscreteProcess(schedule, levels), row)
        super().__init__(denoiser, loss, sampler, likelihood, optimizer, shape, grey_levels, **options)
