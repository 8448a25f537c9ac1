"""Correctors: Langevin steps that move x at fixed noise towards p_t (Song et al. 2021, Section 4.2).

x <- x + e score(x, t) + sqrt(2 e) z,   z ~ N(0, I)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from diffusion_lab.ranges import Count, Positive
from diffusion_lab.sampler.step import Corrector


@dataclass(frozen=True)
class Langevin(Corrector):
    """Step sizes from a signal-to-noise ratio; Song et al. 2021, Algorithms 4 and 5.

        e = 2 a (snr |z| / |score|)^2

    a = 1 for VE; for VP the factor 1 - beta_i of the official program (the paper's algorithm has it too), which here is
    the square of the signal's scale over one of 1,000 steps (over one level of a discrete process).

    Args:
        norm: |z| and |score| are each "image"'s own, or averages over the "batch", as in the official program, which
            makes an image depend on the others of its batch.
    """

    snr: Positive = 0.16
    steps: Count = 1
    norm: Literal["batch", "image"] = "image"

    def __call__(self, p, x, t, denoise, noise) -> Any:
        size, norm = 2 * p.signal_kept(t) * self.snr**2, torch.linalg.vector_norm
        inside = tuple(range(1, x.dim()))
        for _ in range(self.steps):
            score, z = denoise(x, t).score, noise()
            z_norm, score_norm = norm(z, dim=inside, keepdim=True), norm(score, dim=inside, keepdim=True)
            if self.norm == "batch":  # a ratio of averages is one of sums
                z_norm, score_norm = z_norm.sum(), score_norm.sum()
            ratio = z_norm.div_(score_norm)  # e = size ratio^2
            x = x.addcmul(score, ratio.square(), value=size).addcmul_(z, ratio, value=math.sqrt(2 * size))
        return x


@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """Step sizes in proportion to the variance of the noise; Song & Ermon 2019, Algorithm 1, in their program's form.

        e = step_size (sigma_t / sigma_min)^2,   or   e = 2 a (snr sigma_t)^2

    The paper's algorithm has e/2 before the score and sqrt(e) before the noise; the programs of NCSN and NCSNv2 have
    e and sqrt(2 e), so that their published step sizes belong to this form.  The second form is ScoreSDE's "ald": the
    same with snr = sqrt(step_size / 2) / sigma_min.

    Raises:
        ValueError: unless exactly one of step_size and snr is given.
    """

    step_size: Positive | None = None
    snr: Positive | None = None
    steps: Count = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.step_size is None) == (self.snr is None):
            raise ValueError(
                "annealed Langevin dynamics needs either step_size or snr: give one, and null for the other"
            )

    def size(self, p, t: float) -> float:
        """e at t."""
        if self.step_size is None:
            return 2 * p.signal_kept(t) * (self.snr * p.sigma(t)) ** 2
        return self.step_size * (p.sigma(t) / p.sigma(p.t_min)) ** 2

    def __call__(self, p, x, t, denoise, noise) -> Any:
        e = self.size(p, t)
        for _ in range(self.steps):
            x = x + e * denoise(x, t).score + noise(math.sqrt(2 * e))
        return x
