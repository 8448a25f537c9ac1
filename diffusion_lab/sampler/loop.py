"""The one sampling loop."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, draw, stream
from diffusion_lab.process import NoiseProcess, Spacing
from diffusion_lab.sampler.engine import Engine, Written
from diffusion_lab.sampler.inversion import first_noised, inverted
from diffusion_lab.sampler.plan import Plan
from diffusion_lab.sampler.record import Form, Instruction, NotLinear, Recorder
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Corrector, Step
from diffusion_lab.sampler.threshold import chosen
from diffusion_lab.sampler.timesteps import Unit, explicit, sectioned, signal_left


@dataclass(frozen=True)
class State:
    """Where a trajectory is: the time, the noisy sample x, and the clean image x0 last predicted, both (B, ...)."""

    t: float
    x: Tensor
    x0: Tensor


class Sampler:
    """Starts from noise and follows a grid of times down to data: at each time the corrector, then the predictor.

    DDPM is a predictor only, NCSN a corrector only, ScoreSDE both, in this order (that of its official program;
    Algorithms 2 and 3 of Song et al. 2021 print the predictor first).  The steps are recorded once for a batch of some
    shape and replayed on tensors (`record`); what is not linear is run as it is written.

    Args:
        predictor: the step to less noise; None leaves x as it is between two times.
        corrector: Langevin steps at fixed noise; None makes none.
        steps: number of times at which the network is evaluated by a predictor of one evaluation a step; None takes
            every level of a discrete process, or 1000 times of a continuous one.
        spacing, rho: see `NoiseProcess.timesteps`; "explicit" takes them from `times`, and "sections"
            as many as `sections` says of each part of the levels (`timesteps.sectioned`), both in place of `steps`.
        t_start, t_end: the first and the last of these times; None takes 1 and the process's t_min.
        denoise: end with x_0 as predicted at the last time (Tweedie's formula): DDPM's last step, NCSNv2's denoising
            step, ScoreSDE's noise removal.
        clip: clip each prediction of x_0 to the model's image range (points, latents and fields have none).
        dynamic_threshold: this quantile of |x_0| bounds each prediction of x_0 (`threshold.dynamic`), 0.995 in Imagen;
            None does not.
        times, unit: for spacing "explicit", the times themselves (`timesteps.explicit`).
        sections: for spacing "sections", how many levels of each part, that of the least noise first.
        start: "prior", N(0, prior_std^2 I), scaled by sigma(t_start) / sigma(1) where t_start is given, or "uniform",
            between the ends of the image range (NCSN) and, for points, between -prior_std and prior_std.
        precision: dtype of everything outside the network.
    """

    def __init__(
        self,
        predictor: Step | None = None,
        corrector: Corrector | None = None,
        steps: int | None = None,
        spacing: Spacing | Literal["explicit", "sections"] = "uniform",
        rho: float = 7.0,
        denoise: bool = True,
        clip: bool = False,
        start: Literal["prior", "uniform"] = "prior",
        precision: Literal["float32", "float64"] = "float32",
        t_start: float | None = None,
        t_end: float | None = None,
        dynamic_threshold: float | None = None,
        times: Sequence[float] | None = None,
        unit: Unit = "t",
        sections: Sequence[int] | None = None,
    ) -> None:
        if predictor is None and corrector is None:
            raise ValueError("a sampler needs a predictor, a corrector, or both")
        if start not in ("prior", "uniform"):
            raise ValueError(f"start={start!r} is unknown; allowed: prior, uniform")
        for key, given, name in (("times", times, "explicit"), ("sections", sections, "sections")):
            if (not given) == (spacing == name):
                raise ValueError(f"sampler.{key} and sampler.spacing={name} go together: give both, or neither")
            if given and not (t_start is None and t_end is None):
                raise ValueError(f"sampler.{key} says all times: leave out sampler.t_start and sampler.t_end")
        if dynamic_threshold is not None and (clip or not 0 < dynamic_threshold <= 1):
            raise ValueError("sampler.dynamic_threshold is a quantile in (0, 1], such as 0.995, in place of clip=true")
        self.predictor, self.corrector = predictor, corrector
        self.times, self.unit, self.sections, self.dynamic_threshold = times, unit, sections, dynamic_threshold
        self.steps, self.spacing, self.rho, self.t_start, self.t_end = steps, spacing, rho, t_start, t_end
        self.denoise, self.clip, self.start = denoise, clip, start
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    def timesteps(self, denoiser: Denoiser) -> Tensor:
        """The grid of times for this denoiser's process, decreasing, (S,), float64.

        Raises:
            ValueError: if the process has no such grid, or the grid does not start where x does.
        """
        process = denoiser.process
        if process.levels == 1 and self.predictor is not None:
            raise ValueError("a single noise level leaves a predictor no step to make: use sampler=langevin")
        if self.times is not None:
            return explicit(process, self.times, self.unit)
        if self.sections is not None:
            times = sectioned(process, self.sections)
        else:
            times = process.timesteps(self.steps, self.spacing, self.rho, self.t_start, self.t_end)
        std, sigma = self.prior_std(process), process.sigma(times[0]).item()
        if self.predictor is not None and self.start == "prior" and sigma < std / 2:
            raise ValueError(
                f"sampling would start from noise of standard deviation {std:.3g}, but at the first of {len(times)} "
                f"times of sampler.spacing={self.spacing} it is {sigma:.3g}: use sampler.spacing=trailing"
            )
        return times

    def caution(self, denoiser: Denoiser, times: Tensor | None = None) -> str | None:
        """What a user should know of a grid that starts where some signal is left, although x starts without any."""
        times, process = self.timesteps(denoiser) if times is None else times, denoiser.process
        if self.predictor is None or self.start != "prior" or process.keeps_signal:
            return None
        return signal_left(
            process, times, None if self.times is not None else process.span(self.t_start, self.t_end)[0]
        )

    def check(self, denoiser: Denoiser) -> Tensor:
        """`timesteps`, raising ValueError too if the steps between them cannot be made."""
        times = self.timesteps(denoiser)
        self.instructions(denoiser, self.steps_between(times, denoiser), thresholded=False, count=2)
        return times

    def steps_between(self, times: Tensor, denoiser: Denoiser) -> ScalarProcess:
        """The process at these times, between which the predictor finds that it can make its steps."""
        p = ScalarProcess(denoiser.process, times, self.denoise)
        if isinstance(self.predictor, Step):
            self.predictor.check(p)
        return p

    def follow(self, engine: Engine, x: Any) -> Iterator[tuple[float, Any]]:
        """(t, x) after every step from the initial state x; an engine gives the steps forms or tensors."""
        times, engine.corrected = engine.p.times, self.corrector is not None
        for t, s in zip(times, [*times[1:], None], strict=True):
            if self.corrector is not None:
                x = engine.apply("correct", self.corrector, x, t)
            if s is not None and self.predictor is not None:
                x = engine.apply("step", self.predictor, x, t, s)
                yield s, x
            elif self.predictor is None:
                yield t, x
        if self.denoise:
            yield 0.0, engine.apply("last", self.predictor, x, t)
        elif self.predictor is not None:
            yield t, x

    def instructions(
        self, denoiser: Denoiser, p: ScalarProcess, thresholded: bool, shown: bool = False, count: int | None = None
    ) -> list[Instruction]:
        """The sampler's first `count` steps, or all, recorded; anew with each step that turns out to be not linear."""
        as_written: list[Any] = []
        while True:
            recorder = Recorder(denoiser, p, thresholded, as_written)
            try:
                return recorder.follow(islice(self.follow(recorder, Form({0: 1.0})), count), shown)
            except NotLinear as error:
                as_written.append(error.step)

    def written(self, denoiser: Denoiser, times: Tensor, like: Tensor) -> Written:
        """What runs the steps between these times as they are written, on batches like `like` (B, ...)."""
        threshold = chosen(denoiser.parameterization.range_of(like.shape), self.clip, self.dynamic_threshold)
        return Written(denoiser, self.steps_between(times, denoiser), like, threshold, self.corrector is not None)

    def record(self, denoiser: Denoiser, like: Tensor, shown: bool = False) -> Plan:
        """The sampler as it runs on batches like `like` (B, ...): all coefficients, computed in float64.

        With `shown` it yields the state after every step, with x_0, instead of the last one.

        Raises:
            ValueError: if the process has no such grid, or a step cannot be made.
        """
        times = self.timesteps(denoiser)
        if said := self.caution(denoiser, times):
            warnings.warn(said, stacklevel=4)
        written = self.written(denoiser, times, like)
        return Plan(self.instructions(denoiser, written.p, written.thresholded, shown), written)

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """Follow the reverse process from x = x_1, shape (B, ...), yielding the state after every step."""
        x = x.to(self.dtype)
        for t, noisy, x0 in self.record(denoiser, x, shown=True)(x, generator):
            yield State(t, noisy, x0)

    @torch.no_grad()
    def as_written(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Tensor:
        """The sample from x = x_1, with every step run on tensors as it is written."""
        x = x.to(self.dtype)
        written = self.written(denoiser, self.timesteps(denoiser), x)
        written.start(stream(x.shape, generator, x.dtype, x.device))
        return deque(self.follow(written, x), maxlen=1).pop()[1]

    def invert(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """x_1 from which this sampler leads to x_0 (B, ...); raises ValueError as `inversion.inverted`."""
        if self.corrector is not None or self.clip or self.dynamic_threshold is not None:
            raise ValueError("a sampler with corrector or clipping has no inverse: use sampler=ddim")
        times = self.timesteps(denoiser)
        forward = self.instructions(denoiser, self.steps_between(times, denoiser), thresholded=False)
        x = first_noised(denoiser, x0.to(self.dtype), times[-1])
        return inverted(forward, self.predictor, self.written(denoiser, times.flip(0), x), x)

    def prior_std(self, process: NoiseProcess) -> float:
        """Standard deviation of the noise that sampling starts from: the process's, or its share at the first time."""
        if self.times is not None:
            start = explicit(process, self.times, self.unit)[0].item()
        else:
            start, _ = process.span(self.t_start, self.t_end)
        first, one = process.sigma(torch.tensor([start, 1.0], dtype=torch.float64)).tolist()
        return process.prior_std * (first / one)

    def prior(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """x_1 of `shape` (B, ...)."""
        return self.beginning(denoiser, shape)(draw(shape, generator, self.dtype, device))

    def beginning(self, denoiser: Denoiser, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """What makes x_1 of `shape` (B, ...) of noise z, N(0, I)."""
        if self.start == "prior":
            std = self.prior_std(denoiser.process)
            return lambda z: std * z
        reach = denoiser.process.prior_std
        low, high = denoiser.parameterization.range_of(shape) or (-reach, reach)
        return lambda z: low + (high - low) * torch.special.ndtr(z)

    def prepare(
        self, denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Callable[[Generators], Tensor]:
        """Records the sampler for `shape` (B, ...); gives what draws such samples from a generator or one an image."""
        plan = self.record(denoiser, torch.empty(*shape, dtype=self.dtype, device=device))
        beginning = self.beginning(denoiser, shape)

        @torch.no_grad()
        def draw_samples(generator: Generators = None) -> Tensor:
            x = beginning(draw(shape, generator, self.dtype, device))
            return deque(plan(x, generator), maxlen=1).pop()[1]

        return draw_samples

    def __call__(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Samples of `shape` (B, ...) in the model's range, from one generator or one for each image."""
        return self.prepare(denoiser, shape, device)(generator)
