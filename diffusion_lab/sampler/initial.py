"""The state from which sampling starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser


def initial_state(
    denoiser: Denoiser, shape: Sequence[int], start: Literal["prior", "uniform"], std: float, t: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The map from noise z ~ N(0, I) to the initial x of `shape` (B, ...), as the denoiser's control changes it.

    Args:
        start: "prior", N(0, std^2 I), or "uniform", between the ends of the image range (for points, of the prior).
        t: the first timestep, which only a control needs.
    """
    reach = denoiser.process.prior_std
    low, high = denoiser.parameterization.range_of(shape) or (-reach, reach)

    def free(z: Tensor) -> Tensor:
        return std * z if start == "prior" else low + (high - low) * torch.special.ndtr(z)

    if denoiser.control is None:
        return free
    alpha, sigma = (k.item() for k in denoiser.process.alpha_sigma(t))
    return lambda z: denoiser.control.begin(free(z), z, alpha, sigma)
