"""Types of losses and likelihoods, and the options that all models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor

from diffusion_lab.model.conditions import Guidance
from diffusion_lab.model.labels import Labels
from diffusion_lab.ranges import Count, NonNegativeInt

Loss = Callable[..., Tensor]
"""(denoiser, x0, generator) -> the loss of each data point, (B,).

The generator is None in training, and a list with one per item in validation, so that each item always has the same
time and noise.  `diffusion_lab.noise.draw` and `draw_each` accept None, a `torch.Generator` or such a list.

A loss may have these methods: `check(denoiser, shape)` prepares it before training, and raises ValueError for a model
that it does not suit; `after_update(network)` follows every update of the weights; `training_state()` returns plain
containers and tensors that a checkpoint keeps, and `load_training_state(state)` takes them when a run resumes.
"""

Likelihood = Callable[..., Any]
"""(denoiser, x0, grey_levels, generator) -> an object with `log_likelihood` and its `terms`, in nats."""


class TrainingOptions(TypedDict, total=False):
    """Options that every method passes on to `Training`; documented there."""

    dequantize: bool
    warmup_steps: NonNegativeInt
    decay_steps: Count | None
    channels_last: bool
    labels: Labels | None


class ModelOptions(TrainingOptions, total=False):
    """Options that every method passes on to `Model`; documented there."""

    guidance: Guidance | None
