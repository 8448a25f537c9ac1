"""Correctors: Langevin steps that move x at fixed noise towards p_t (Song et al. 2021, Section 4.2).

x <- x + e score(x, t) + sqrt(2 e) z,   z ~ N(0, I)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Estimate
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import NoiseProcess


class Corrector(ABC):
    """`steps` Langevin steps, whose size e is what tells correctors apart."""

    steps: int

    @abstractmethod
    def size(self, process: NoiseProcess, t: Tensor, estimate: Estimate, z: Tensor) -> Tensor | float:
        """e, one number or of shape (B, 1, ..., 1)."""

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
        """(x after the steps, the last guess of x_0 on the way), both of the shape of x; t is a scalar."""
        for _ in range(self.steps):
            estimate = denoiser(x, t)
            z = draw(x.shape, generator, x.dtype, x.device)
            size = self.size(denoiser.process, t, estimate, z)
            x = x + size * estimate.score + (2 * size) ** 0.5 * z
        return x, estimate.x0


class Langevin(Corrector):
    """Step sizes from a signal-to-noise ratio; Song et al. 2021, Algorithms 4 and 5.

        e = 2 a (snr |z| / |score|)^2

    a = 1 for VE; for VP the factor 1 - beta_i of the official program (the paper's algorithm has it too), which here is
    the square of the signal's scale over one of 1,000 steps (over one level of a ladder).

    Args:
        norm: |z| and |score| are averages over the "batch", as published, which ties an image to its batch, or are
            each "image"'s own.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1, norm: Literal["batch", "image"] = "batch") -> None:
        if snr <= 0 or steps < 1:
            raise ValueError(f"a Langevin corrector needs snr > 0 and steps >= 1, got {snr} and {steps}")
        if norm not in ("batch", "image"):
            raise ValueError(f"norm={norm!r} is unknown; allowed: batch, image")
        self.snr, self.steps, self.norm = snr, steps, norm

    def size(self, process: NoiseProcess, t: Tensor, estimate: Estimate, z: Tensor) -> Tensor:
        noise, score = (v.flatten(1).norm(dim=1) for v in (z, estimate.score))
        if self.norm == "batch":
            noise, score = noise.mean(), score.mean()
        size = 2 * signal_kept(process, t) * (self.snr * noise / score) ** 2
        return size.reshape(-1, *(1,) * (z.dim() - 1)) if size.dim() else size


class AnnealedLangevin(Corrector):
    """Step sizes in proportion to the variance of the noise; Song & Ermon 2019, Algorithm 1, in their program's form.

        e = step_size (sigma_t / sigma_min)^2,   or   e = 2 a (snr sigma_t)^2

    The paper's algorithm has e/2 before the score and sqrt(e) before the noise; the programs of NCSN and NCSNv2 have
    e and sqrt(2 e), so that their published step sizes belong to this form.  The second form is ScoreSDE's "ald": the
    same with snr = sqrt(step_size / 2) / sigma_min.

    Raises:
        ValueError: unless exactly one of step_size and snr is given.
    """

    def __init__(self, step_size: float | None = None, snr: float | None = None, steps: int = 100) -> None:
        if (step_size is None) == (snr is None):
            raise ValueError(
                "annealed Langevin dynamics needs either step_size or snr: give one, and null for the other"
            )
        if (step_size or snr or 0) <= 0 or steps < 1:
            raise ValueError(f"step_size or snr must be positive and steps >= 1, got {step_size}, {snr}, {steps}")
        self.step_size, self.snr, self.steps = step_size, snr, steps

    def size(self, process: NoiseProcess, t: Tensor, estimate: Estimate, z: Tensor) -> float:
        sigma = process.sigma(t).item()
        if self.step_size is not None:
            lowest = process.sigma(torch.tensor(process.t_min, dtype=torch.float64)).item()
            return self.step_size * (sigma / lowest) ** 2
        return 2 * signal_kept(process, t) * (self.snr * sigma) ** 2


def signal_kept(process: NoiseProcess, t: Tensor) -> float:
    """(alpha_t / alpha_s)^2 with s one level, or a thousandth of the clock, before t."""
    s = (t - 1 / (process.levels or 1000)).clamp(min=0)
    return process.discretize(s, t)[0].item() ** 2
