"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv:2006.11239)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.base import Likelihood, Loss, Model
from diffusion_lab.model.conditions import Guidance
from diffusion_lab.model.labels import Labels
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Schedule
from diffusion_lab.sampler import Sampler


class DDPM(Model):
    """A ladder of `levels` betas, a network that is told the level, and images in [-1, 1].

    The published method predicts eps with L_simple (Eq. 14) and samples ancestrally with the variance beta_t
    ("fixed_large"). `output` is what the network predicts instead; "score" is its sigma-scaled form, -eps.
    """

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        schedule: Schedule,
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        shape: Sequence[int] = (3, 32, 32),
        grey_levels: int | None = 256,
        levels: int = 1000,
        output: Literal["eps", "x0", "v", "score"] = "eps",
        dequantize: bool = False,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        channels_last: bool = True,
        labels: Labels | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        meaning = {"eps": "eps", "x0": "x0", "v": "v", "score": "scaled_score"}[output]
        row = Parameterization(output=meaning, c_noise="level", low=-1.0, high=1.0, unit_input=True)
        denoiser = Denoiser(network, DiscreteProcess(schedule, levels), row)
        super().__init__(
            denoiser,
            loss,
            sampler,
            likelihood,
            optimizer,
            shape,
            grey_levels,
            dequantize,
            warmup_steps,
            decay_steps,
            channels_last,
            labels,
            guidance,
        )
