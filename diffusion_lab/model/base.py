"""The base LightningModule of all methods: a denoiser, a loss, a sampler and an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.conditions import Guidance
from diffusion_lab.model.labels import Label
from diffusion_lab.model.options import Likelihood, Loss, TrainingOptions
from diffusion_lab.model.sampling import Sampling
from diffusion_lab.model.training import Training
from diffusion_lab.ranges import Count, Levels, checked
from diffusion_lab.sampler import Sampler


class Model(Sampling, Training):
    """A denoiser that is trained (`Training`, which documents the other arguments) and sampled from (`Sampling`).

    Args:
        sampler: default sampler of `sample`.
        likelihood: evaluators of log p(x) by name ("bound", "flow"); None for no likelihood.
        guidance: changes the estimates while sampling; None for no guidance.

    `label` is the default label of `sample`.
    """

    @checked
    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | Likelihood | None,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        shape: Sequence[Count],
        grey_levels: Levels | None = None,
        guidance: Guidance | None = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(denoiser, loss, optimizer, shape, grey_levels, **options)
        self.sampler, self.guidance = sampler, guidance or None
        if callable(likelihood):  # a single one, as in the first checkpoints
            likelihood = {likelihood.name: likelihood}
        # A recipe may configure a likelihood that was not chosen: then its node is not an object.
        self.likelihood = {name: one for name, one in (likelihood or {}).items() if callable(one)}
        self.label: Label = None

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`, float32; images are clipped to [0, 1] and rounded to the grey levels of the data."""
        row = self.denoiser.parameterization
        if self.grey_levels is None:
            return x.float()
        images, top = ((x.float() - row.low) / (row.high - row.low)).clamp(0, 1), self.grey_levels - 1
        if self.dequantize:  # the level of the bin
            return (images * self.grey_levels).floor().clamp(max=top) / top
        return (images * top).round() / top
