"""Sampling from consistency models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_lab.ranges import NonNegative
from diffusion_lab.sampler.step import Step


@dataclass(frozen=True)
class Consistency(Step):
    """The end of the trajectory, then noise again; Song et al. 2023, Algorithm 1, with one step for each timestep.

        x_s = alpha_s (f(x_t, t) + sqrt(n_s^2 - sigma_min^2) z),   n = sigma / alpha

    f is the estimate of x_0 of a model trained by `loss.ConsistencyLoss`, or by another few-step distillation.

    Args:
        sigma_min: n of the images that f yields; 0 if they have no noise.
    """

    CONSISTENCY: ClassVar = True
    """Its predictions of x_0 are ends of trajectories, not means."""

    sigma_min: NonNegative = 0.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        n = math.sqrt(max(p.noise_to_signal(s) ** 2 - self.sigma_min**2, 0.0))
        return p.alpha(s) * (denoise(x, t).x0 + noise(n))


def for_consistency_models(sampler: Any) -> bool:
    """Whether a sampler takes estimates of x_0 as ends of trajectories."""
    return getattr(getattr(sampler, "predictor", None), "CONSISTENCY", False)
