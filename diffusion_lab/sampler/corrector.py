"""Correctors: Langevin steps that move x at fixed noise towards p_t (Song et al. 2021, Section 4.2).

x <- x + e score(x, t) + sqrt(2 e) z,   z ~ N(0, I)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Reading
from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler.plan import combine


class Corrector(ABC):
    """`steps` Langevin steps, whose size e is what tells correctors apart."""

    steps: int

    @abstractmethod
    def roots(self, process: NoiseProcess, times: Tensor) -> Tensor:
        """sqrt(e) at `times` (S,), float64, or that factor of it which is the same for all arrays."""

    def root(self, at_time: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """sqrt(e), a scalar or of shape (B, 1, ..., 1), from the scalar that `roots` gave for the time."""
        return at_time

    def __call__(
        self, denoiser: Denoiser, x: Tensor, reading: Reading, at_time: Tensor, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x after the steps, the x at which the network was last asked, its output there), all of the shape of x."""
        for _ in range(self.steps):
            asked, output, z = x, denoiser.read(x, reading), noise()
            by_x, by_output = reading.score
            score = output.to(x.dtype) * by_output if by_x is None else combine(reading.score, x, (output,))
            root = self.root(at_time, score, z)
            x = torch.addcmul(x, score, root.square()).addcmul_(z, root, value=math.sqrt(2))
        return x, asked, output


class Langevin(Corrector):
    """Step sizes from a signal-to-noise ratio; Song et al. 2021, Algorithms 4 and 5.

        e = 2 a (snr |z| / |score|)^2

    a = 1 for VE; for VP the factor 1 - beta_i of the official program (the paper's algorithm has it too), which here is
    the square of the signal's scale over one of 1,000 steps (over one level of a ladder).

    Args:
        norm: |z| and |score| are each "image"'s own, or averages over the "batch", as in the official program, which
            makes an image depend on the others of its batch.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1, norm: Literal["batch", "image"] = "image") -> None:
        if snr <= 0 or steps < 1:
            raise ValueError(f"a Langevin corrector needs snr > 0 and steps >= 1, got {snr} and {steps}")
        if norm not in ("batch", "image"):
            raise ValueError(f"norm={norm!r} is unknown; allowed: batch, image")
        self.snr, self.steps, self.norm = snr, steps, norm

    def roots(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return self.snr * (2 * signal_kept(process, times)).sqrt()

    def root(self, at_time: Tensor, score: Tensor, z: Tensor) -> Tensor:
        inside = tuple(range(1, z.dim()))
        noise, score = (torch.linalg.vector_norm(v, dim=inside, keepdim=True) for v in (z, score))
        if self.norm == "batch":
            noise, score = noise.mean(), score.mean()
        return at_time * (noise / score)


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

    def roots(self, process: NoiseProcess, times: Tensor) -> Tensor:
        sigma = process.sigma(times)
        if self.step_size is None:
            return self.snr * (2 * signal_kept(process, times)).sqrt() * sigma
        lowest = process.sigma(torch.tensor(process.t_min, dtype=torch.float64)).item()
        return math.sqrt(self.step_size) * sigma / lowest


def signal_kept(process: NoiseProcess, t: Tensor) -> Tensor:
    """(alpha_t / alpha_s)^2 with s one level, or a thousandth of the clock, before t; of the shape of t."""
    s = (t - 1 / (process.levels or 1000)).clamp(min=0)
    return process.discretize(s, t)[0] ** 2
