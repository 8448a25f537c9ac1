"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import Spacing
from diffusion_lab.sampler.predictor import Predictor


@dataclass(frozen=True)
class State:
    """Where a trajectory is: the time, the noisy sample x, and the clean image x0 last guessed, both (B, ...)."""

    t: float
    x: Tensor
    x0: Tensor


class Sampler:
    """Draws x_1 from the prior and follows a predictor down a grid of times to data.

    Args:
        predictor: the reverse step.
        steps: number of steps; None takes every level of a ladder, or 1000 steps of a continuous process.
        spacing: how the times are spread (`NoiseProcess.grid`).
        clip: clip each estimate of x_0 to the model's image range (points in the plane have none).
        precision: dtype of everything outside the network.
    """

    def __init__(
        self,
        predictor: Predictor,
        steps: int | None = None,
        spacing: Spacing = "uniform",
        clip: bool = True,
        precision: Literal["float32", "float64"] = "float32",
    ) -> None:
        self.predictor, self.steps, self.spacing, self.clip = predictor, steps, spacing, clip
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """Follow the reverse process from x = x_1, shape (B, ...), yielding the state after every step."""
        times = denoiser.process.grid(self.steps, self.spacing)
        coefficients = self.predictor.coefficients(denoiser.process, times[:-1], times[1:])
        row, clip = denoiser.parameterization, self.clip and x.dim() == 4
        x = x.to(self.dtype)
        for t, s, a, b, c in zip(times[:-1], times[1:].tolist(), *(k.tolist() for k in coefficients), strict=True):
            x0 = denoiser(x, t).x0
            if clip:
                x0 = x0.clamp(row.low, row.high)
            x = a * x + b * x0
            if c > 0:
                x.add_(draw(x.shape, generator, x.dtype, x.device), alpha=c)
            yield State(s, x, x0)

    def prior(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """x_1 ~ N(0, prior_std^2 I) of `shape` (B, ...)."""
        return denoiser.process.prior_std * draw(shape, generator, self.dtype, device)

    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Samples of `shape` (B, ...) in the model's range.

        Args:
            generator: one for the batch, or a sequence with one for each image (`image_generators`).
        """
        x = self.prior(denoiser, shape, generator, device)
        for state in self.trajectory(denoiser, x, generator):
            x = state.x
        return x
