"""The one sampling loop."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Reading
from diffusion_lab.noise import Generators, draw, stream
from diffusion_lab.process import NoiseProcess, Spacing
from diffusion_lab.sampler.corrector import Corrector
from diffusion_lab.sampler.plan import Step, combine, make_steps
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
        t_start, t_end: the first and the last of these times; None takes 1 and the process's t_min.
        denoise: end with x_0 as guessed at the last time (Tweedie's formula): DDPM's last step, NCSNv2's denoising
            step, ScoreSDE's noise removal.
        clip: clip each guess of x_0 to the model's image range (points, latents and fields have none).
        start: "prior", N(0, prior_std^2 I), scaled by sigma(t_start) / sigma(1) where t_start is given, or "uniform",
            between the ends of the image range (NCSN) and, for points, between -prior_std and prior_std.
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
        t_start: float | None = None,
        t_end: float | None = None,
    ) -> None:
        if predictor is None and corrector is None:
            raise ValueError("a sampler needs a predictor, a corrector, or both")
        if start not in ("prior", "uniform"):
            raise ValueError(f"start={start!r} is unknown; allowed: prior, uniform")
        self.predictor, self.corrector = predictor, corrector
        self.steps, self.spacing, self.rho, self.t_start, self.t_end = steps, spacing, rho, t_start, t_end
        self.denoise, self.clip, self.start = denoise, clip, start
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
        self._kept: tuple[tuple, tuple[bool, list[Step]]] | None = None

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """Follow the reverse process from x = x_1, shape (B, ...), yielding the state after every step."""
        for t, noisy, x0 in self.walk(denoiser, x, generator, shown=True):
            yield State(t, noisy, x0)

    def walk(
        self, denoiser: Denoiser, x: Tensor, generator: Generators, shown: bool
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(t, x, x0) after every step, in a context without gradients; x0 means nothing unless it is to be shown."""
        x = x.to(self.dtype)
        direct, steps = self.prepared(denoiser, x, shown)
        ask = denoiser.read if direct else partial(self.guess, denoiser)
        noise = stream(x.shape, generator, x.dtype, x.device)
        before, latest, past = x, x, []
        for step in steps:  # the last has no move, unless a predictor's own step to data takes its place
            x0 = None  # the guess at the present x, or the output in its place; None once x has changed
            if step.refine is not None:
                x0 = latest = ask(x, step.here)
                x = combine(step.refine, before, (x0, x) if direct else (x0, *past))
                x0 = x0 if self.predictor.reuse else None
            if step.root is not None:
                x, *asked = self.corrector(denoiser, x, step.here, step.root, noise)
                x0, latest = None, self.x0(denoiser, *asked, step.here) if shown else latest
            if step.predict is not None:
                if step.churn is not None:
                    x, x0 = combine(step.churn, x, (noise(),)), None
                x0 = latest = ask(x, step.there) if x0 is None else x0
                past = [x0, *past][: len(step.predict) - 1]
                before, x = x, combine(step.predict, x, past)
                if step.noise is not None:
                    x.addcmul_(noise(), step.noise)
                yield step.t, x, latest
            elif self.predictor is None:
                yield step.t, x, latest
        if step.predict is not None:  # a step to data, which has been yielded
            return
        if self.denoise:
            x0 = self.guess(denoiser, x, step.here) if x0 is None else x0
            yield 0.0, x0, x0
        elif self.predictor is not None:
            yield step.t, x, latest

    def guess(self, denoiser: Denoiser, x: Tensor, reading: Reading) -> Tensor:
        """x0_hat at x, clipped if the sampler clips."""
        return self.x0(denoiser, x, denoiser.read(x, reading), reading)

    def x0(self, denoiser: Denoiser, x: Tensor, output: Tensor, reading: Reading) -> Tensor:
        """x0_hat of what the network put out at x, clipped if the sampler clips."""
        x0, bounds = combine(reading.x0, x, (output,)), denoiser.parameterization.range_of(x.shape)
        return x0.clamp_(*bounds) if self.clip and bounds else x0

    def prepared(self, denoiser: Denoiser, x: Tensor, shown: bool) -> tuple[bool, list[Step]]:
        """The steps for arrays like x, and whether their moves are direct; kept for the next batch.

        Moves by one guess need no guess if it is neither clipped nor shown: they are direct, in terms of the output.
        """
        parts = (self.predictor, self.corrector, denoiser.process, getattr(denoiser.process, "schedule", None))
        own = [vars(part) for part in (self, *parts) if part is not None]
        settings = [
            {name: value for name, value in each.items() if isinstance(value, str | float | int)} for each in own
        ]
        like = (x.shape, x.dtype, x.device, type(denoiser), denoiser.network_dtype)
        key = (parts, settings, denoiser.parameterization, like, shown)
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            times, moves = self.plan(denoiser)
            if said := self.caution(denoiser):
                warnings.warn(said, stacklevel=2)
            roots = None if self.corrector is None else self.corrector.roots(denoiser.process, times)
            alone = all(m and len(m.b) == 1 and not (m.refine and self.predictor.reuse) for m in moves)
            direct = alone and not shown and not (self.clip and denoiser.parameterization.range_of(x.shape))
            kept = self._kept = key, (direct, make_steps(denoiser, x, times, moves, roots, direct))
        return kept[1]

    def plan(self, denoiser: Denoiser) -> tuple[Tensor, list[Move | None]]:
        """The grid of times for this denoiser's process, and the predictor's moves between them (None without one).

        Raises:
            ValueError: if its process does not have such a grid, the grid does not start where x does, or the predictor
                cannot make the moves.
        """
        process = denoiser.process
        if process.levels == 1 and self.predictor is not None:
            raise ValueError("a single noise level leaves a predictor no step to make: use sampler=langevin")
        times = process.grid(self.steps, self.spacing, self.rho, self.t_start, self.t_end)
        if self.predictor is None:
            return times, [None] * (len(times) - 1)
        sigma = process.sigma(times[0]).item()
        if self.start == "prior" and sigma < self.prior_std(process) / 2:
            raise ValueError(
                f"sampling would start from noise of standard deviation {self.prior_std(process):.3g}, but at the "
                f"first of {len(times)} times of sampler.spacing={self.spacing} it is {sigma:.3g}: use "
                f"sampler.spacing=trailing"
            )
        moves = self.predictor.moves(process, times)
        last = self.predictor.last(process, times) if self.denoise else None
        return times, [*moves, last] if last else moves

    def caution(self, denoiser: Denoiser) -> str | None:
        """What a user should know of a grid that starts where some signal is left, although x starts without any."""
        process, times = denoiser.process, self.plan(denoiser)[0]
        alpha, sigma = (k.item() for k in process.scales(times[0]))
        if self.predictor is None or self.start != "prior" or process.keeps_signal or alpha < 0.05 * sigma:
            return None
        later = times[0].item() < process.span(self.t_start, self.t_end)[0]
        remedy = "sampler.spacing=trailing starts later" if later else "the schedule has no more noise than this"
        return (
            f"the first of the sampler's {len(times)} times, t = {times[0]:.3g}, keeps alpha = {alpha:.2g} of the "
            f"signal, but sampling starts from noise alone: {remedy} (Lin et al. 2023)"
        )

    def check(self, denoiser: Denoiser) -> Tensor:
        """The grid of times; raises ValueError as `plan` does."""
        return self.plan(denoiser)[0]

    def prior_std(self, process: NoiseProcess) -> float:
        """Standard deviation of the noise that sampling starts from: the process's, or its share at t_start."""
        if self.t_start is None:
            return process.prior_std
        start, _ = process.span(self.t_start, self.t_end)
        first, one = process.sigma(torch.tensor([start, 1.0], dtype=torch.float64)).tolist()
        return process.prior_std * first / one

    def prior(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """x_1 of `shape` (B, ...)."""
        z = draw(shape, generator, self.dtype, device)
        if self.start == "prior":
            return self.prior_std(denoiser.process) * z
        reach = denoiser.process.prior_std
        low, high = denoiser.parameterization.range_of(shape) or (-reach, reach)
        return low + (high - low) * torch.special.ndtr(z)

    @torch.no_grad()
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
        _, x, _ = deque(self.walk(denoiser, x, generator, shown=False), maxlen=1).pop()
        return x
