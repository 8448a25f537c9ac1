"""From images to the noise that leads to them by a deterministic sampler (Song, Meng & Ermon 2021, Section 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.sampler.engine import Written
from diffusion_lab.sampler.record import Draw, Instruction, Run


@torch.no_grad()
def first_noised(denoiser: Denoiser, x0: Tensor, t: Tensor) -> Tensor:
    """x_t of x_0 (B, ...) on the probability flow, at a time t of little noise: alpha x_0 + sigma eps(alpha x_0, t)."""
    alpha, sigma = denoiser.process.marginal(t, x0)
    return alpha * x0 + sigma * denoiser(alpha * x0, t).eps


@torch.no_grad()
def inverted(forward: Sequence[Instruction], step: Callable[..., Any], written: Written, x: Tensor) -> Tensor:
    """x_1 from x at the last timestep: the same steps in reverse order of time, with their error.

    Args:
        forward: the sampler as it is recorded.
        written: what runs its steps, at its times in reverse order.

    Raises:
        ValueError: for a sampler that draws noise or is not linear.
    """
    if any(type(one) in (Draw, Run) for one in forward):
        raise ValueError("a sampler that draws noise, or is not linear, has no inverse: use sampler=ddim")
    for t, s in pairwise(written.p.times):
        x = written.apply("step", step, x, t, s)
    return x
