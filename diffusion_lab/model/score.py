"""Score matching at a single noise level, as before NCSN (Hyvärinen 2005, Vincent 2011, Song et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.base import Model
from diffusion_lab.model.options import Likelihood, Loss, ModelOptions
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import SingleLevel
from diffusion_lab.ranges import Count, Levels, Positive, checked
from diffusion_lab.sampler import Sampler


class ScoreMatching(Model):
    """A network for the score of the data perturbed by one small sigma, or sigma times this score; images in [0, 1].

    Trained by any loss of `diffusion_lab.loss`, and sampled by Langevin dynamics.
    """

    SINGLE_LEVEL: ClassVar = True
    REFUSES: ClassVar = {
        "model.loss.vlb_weight": "has only one noise level and no variational bound: set loss.vlb_weight=0",
    }

    @checked
    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | Likelihood | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        shape: Sequence[Count] = (2,),
        grey_levels: Levels | None = None,
        sigma: Positive = 0.1,
        prior_std: Positive = 2.0,
        output: Literal["score", "scaled_score"] = "scaled_score",
        **options: Unpack[ModelOptions],
    ) -> None:
        row = Parameterization(output=output, c_noise="nothing", low=0.0, high=1.0)
        denoiser = Denoiser(network, SingleLevel(sigma, prior_std), row)
        super().__init__(denoiser, loss, sampler, likelihood, optimizer, shape, grey_levels, **options)
