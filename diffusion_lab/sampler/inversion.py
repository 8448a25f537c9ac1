"""From images to the noise that leads to them by a deterministic sampler (Song, Meng & Ermon 2021, Section 5.4)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.sampler.record import Draw, Run

if TYPE_CHECKING:
    from diffusion_lab.sampler.loop import Sampler


@torch.no_grad()
def first_noised(denoiser: Denoiser, x0: Tensor, t: Tensor) -> Tensor:
    """x_t of x_0 (B, ...) on the probability flow, at a time t of little noise: alpha x_0 + sigma eps(alpha x_0, t)."""
    alpha, sigma = denoiser.process.marginal(t, x0)
    return alpha * x0 + sigma * denoiser(alpha * x0, t).eps


def steps_without_noise(sampler: Sampler, denoiser: Denoiser) -> bool:
    """Whether all steps of a sampler are linear, but for a threshold, and draw no noise."""
    if denoiser.control is not None or sampler.corrector is not None:
        return False
    p = sampler.steps_between(sampler.timesteps(denoiser), denoiser)
    return not any(type(one) in (Draw, Run) for one in sampler.instructions(denoiser, p, thresholded=False))


@torch.no_grad()
def inverted(sampler: Sampler, denoiser: Denoiser, x0: Tensor) -> Tensor:
    """The noise x_1 from which a sampler leads to x_0 (B, ...): the same steps in reverse order of time.

    Raises:
        ValueError: for a sampler that draws noise, is not linear, or changes its states otherwise.
    """
    if denoiser.control is not None:
        raise ValueError("sampling under a control has no inverse: leave out control")
    if sampler.corrector is not None or sampler.clip or sampler.dynamic_threshold is not None:
        raise ValueError("a sampler with corrector or clipping has no inverse: use sampler=ddim")
    times = sampler.timesteps(denoiser)
    if not steps_without_noise(sampler, denoiser):
        raise ValueError("a sampler that draws noise, or is not linear, has no inverse: use sampler=ddim")
    x = first_noised(denoiser, x0.to(sampler.dtype), times[-1])
    written = sampler.written(denoiser, times.flip(0), x)
    for t, s in pairwise(written.p.times):
        x = written.apply("step", sampler.predictor, x, t, s)
    return x
