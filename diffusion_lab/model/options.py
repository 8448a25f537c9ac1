"""What a model is given: losses, likelihoods, and the options that all methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor

from diffusion_lab.model.conditions import Guidance
from diffusion_lab.model.labels import Labels

Loss = Callable[..., Tensor]
"""(denoiser, x0, generator) -> the loss of each data point, (B,).

Training gives no generator; validation a list, one for each item, so that an item has the same time and noise every
time.  `diffusion_lab.noise.draw` and `draw_each` take all of None, a `torch.Generator` and such a list.
"""

Likelihood = Callable[..., Any]
"""(denoiser, x0, grey_levels, generator) -> something with a `log_likelihood` and its `terms`, in nats."""


class ModelOptions(TypedDict, total=False):
    """Options that every method passes on to `Model`, which describes them."""

    dequantize: bool
    warmup_steps: int
    decay_steps: int | None
    channels_last: bool
    labels: Labels | None
    guidance: Guidance | None
