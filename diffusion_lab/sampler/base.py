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
from diffusion_lab.sampler.corrector import Corrector
from diffusion_lab.sampler.predictor import Move, Predictor


@dataclass(frozen=True)
class State:
    """Where a trajectory is: the time, the noisy sample x, and the clean image x0 last guessed, both (B, ...)."""

    t: float
    x: Tensor
    x0: Tensor


class Sampler:
    """Starts from noise and follows a grid of times down to data: at each time the corrector, then the predictor.

    DDPM is a predictor only, NCSN a corrector only, ScoreSDE both, in this order (that of its official program;
    Algorithms 2 and 3 of Song et al. 2021 print the predictor first).

    Args:
        predictor: the move to less noise; None leaves x as it is between two times.
        corrector: Langevin steps at fixed noise; None makes none.
        steps: number of times at which the network is asked by a predictor of one evaluation a step; None takes every
            level of a ladder, or 1000 times of a continuous process.
        spacing, rho: how the times are spread (`NoiseProcess.grid`).
        denoise: end with x_0 as guessed at the last time (Tweedie's formula): DDPM's last step, NCSNv2's denoising
            step, ScoreSDE's noise removal.
        clip: clip each guess of x_0 to the model's image range (points in the plane have none).
        start: "prior", N(0, prior_std^2 I), or "uniform", between the ends of the image range (NCSN) and, for points,
            between -prior_std and prior_std.
        precision: dtype of everything outside the network.
    """

    def __init__(
        self,
        predictor: Predictor | None = None,
        corrector: Corrector | None = None,
        steps: int | None = None,
        spacing: Spacing = "uniform",
        rho: float = 7.0,
        denoise: bool = True,
        clip: bool = False,
        start: Literal["prior", "uniform"] = "prior",
        precision: Literal["float32", "float64"] = "float32",
    ) -> None:
        if predictor is None and corrector is None:
            raise ValueError("a sampler needs a predictor, a corrector, or both")
        if start not in ("prior", "uniform"):
            raise ValueError(f"start={start!r} is unknown; allowed: prior, uniform")
        self.predictor, self.corrector = predictor, corrector
        self.steps, self.spacing, self.rho = steps, spacing, rho
        self.denoise, self.clip, self.start = denoise, clip, start
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """Follow the reverse process from x = x_1, shape (B, ...), yielding the state after every step."""
        times, moves = self.plan(denoiser)
        x = x.to(self.dtype)
        before, latest, guesses = x, x, []
        for t, arrived, move in zip(times, [None, *moves], [*moves, None], strict=True):
            x0 = None  # the guess at the present x; None once x has changed
            if arrived is not None and arrived.refine is not None:
                x0 = latest = self.guess(denoiser, x, t)
                x = combine(*arrived.refine, before, [x0, *guesses])
                x0 = x0 if self.predictor.reuse else None
            if self.corrector is not None:
                x, latest = self.corrector(denoiser, x, t, generator)
                x0 = None
            if move is not None:
                if move.churn is not None:
                    scale, std = move.churn
                    x, x0 = scale * x + std * draw(x.shape, generator, x.dtype, x.device), None
                x0 = latest = self.guess(denoiser, x, move.t) if x0 is None else x0
                guesses = [x0, *guesses[: len(move.b) - 1]]
                before, x = x, combine(move.a, move.b, x, guesses)
                if move.c > 0:
                    x.add_(draw(x.shape, generator, x.dtype, x.device), alpha=move.c)
                yield State(move.s.item(), x, x0)
            elif self.predictor is None:
                yield State(t.item(), x, latest)
        if self.denoise:
            x0 = self.guess(denoiser, x, t) if x0 is None else x0
            yield State(0.0, x0, x0)
        elif self.predictor is not None:
            yield State(t.item(), x, latest)

    def plan(self, denoiser: Denoiser) -> tuple[Tensor, list[Move | None]]:
        """The grid of times for this denoiser's process, and the predictor's moves between them (None without one).

        Raises:
            ValueError: if its process does not have such a grid, or the predictor cannot make the moves.
        """
        times = denoiser.process.grid(self.steps, self.spacing, self.rho)
        if self.predictor is None:
            return times, [None] * (len(times) - 1)
        return times, self.predictor.moves(denoiser.process, times)

    def check(self, denoiser: Denoiser) -> Tensor:
        """The grid of times; raises ValueError as `plan` does."""
        return self.plan(denoiser)[0]

    def guess(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat at x, clipped if the sampler clips."""
        x0, row = denoiser(x, t).x0, denoiser.parameterization
        return x0.clamp(row.low, row.high) if self.clip and x.dim() == 4 else x0

    def prior(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """x_1 of `shape` (B, ...)."""
        z = draw(shape, generator, self.dtype, device)
        if self.start == "prior":
            return denoiser.process.prior_std * z
        row, reach = denoiser.parameterization, denoiser.process.prior_std
        low, high = (row.low, row.high) if len(shape) == 4 else (-reach, reach)
        return low + (high - low) * torch.special.ndtr(z)

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


def combine(a: float, b: Sequence[float], x: Tensor, guesses: Sequence[Tensor]) -> Tensor:
    """a x + sum_k b[k] guesses[k]."""
    total = a * x
    for weight, guess in zip(b, guesses, strict=True):
        total.add_(guess, alpha=weight)
    return total
