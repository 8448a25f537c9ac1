"""The sampling loop, shared by all samplers."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, draw, stream
from diffusion_lab.process import NoiseProcess, Spacing
from diffusion_lab.ranges import Count, Positive, Time, checked
from diffusion_lab.sampler.ancestral import check_mean_gradient
from diffusion_lab.sampler.engine import Engine, Written
from diffusion_lab.sampler.initial import initial_state
from diffusion_lab.sampler.inversion import inverted, steps_without_noise
from diffusion_lab.sampler.plan import Plan
from diffusion_lab.sampler.record import Form, Instruction, NotLinear, Recorder
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Corrector, State, Step
from diffusion_lab.sampler.threshold import chosen
from diffusion_lab.sampler.timesteps import Unit, explicit, sectioned, signal_left


class Sampler:
    """Start from noise and step through decreasing timesteps to data: at each, the corrector, then the predictor.

    DDPM is a predictor only, NCSN a corrector only, ScoreSDE both, in this order (that of its official program).
    Linear steps are recorded once for a batch shape and replayed (`record`); others run on tensors as written.

    Args:
        predictor: the step to the next timestep; None leaves x unchanged.
        corrector: Langevin steps at a fixed noise level; None for none.
        steps: number of timesteps; None takes every level of a discrete process, or 1000 of a continuous one.
        spacing, rho: see `NoiseProcess.timesteps`; "explicit" takes `times`, and "sections" `sections[k]` levels of
            the k-th of equal parts of all levels (`timesteps.sectioned`); both replace `steps`.
        t_start, t_end: the first and the last timestep; None takes those of `NoiseProcess.span`.
        denoise: end with x_0 as predicted at the last time (Tweedie's formula): DDPM's last step, NCSNv2's denoising
            step, ScoreSDE's noise removal.
        clip: clip each prediction of x_0 to the model's image range (points, latents and fields have none).
        dynamic_threshold: quantile of |x_0| that bounds each prediction of x_0 (`threshold.dynamic`), 0.995 in Imagen;
            None for no thresholding.
        times, unit: for spacing "explicit", the times themselves (`timesteps.explicit`).
        sections: for spacing "sections", the number of levels of each part, the part of least noise first.
        start: "prior", N(0, prior_std^2 I), scaled by sigma(t_start) / sigma(1) where t_start is given, or "uniform",
            between the ends of the image range (NCSN) and, for points, between -prior_std and prior_std.
        precision: dtype of everything outside the network.

    A denoiser's control (`control.Control`) changes the states between steps, and may choose the first time.
    """

    ANY_OF: ClassVar = (("predictor", "corrector"),)

    @checked
    def __init__(
        self,
        predictor: Step | None = None,
        corrector: Corrector | None = None,
        steps: Count | None = None,
        spacing: Spacing | Literal["explicit", "sections"] = "uniform",
        rho: Positive = 7.0,
        denoise: bool = True,
        clip: bool = False,
        start: Literal["prior", "uniform"] = "prior",
        precision: Literal["float32", "float64"] = "float32",
        t_start: Time | None = None,
        t_end: Time | None = None,
        dynamic_threshold: Annotated[float, Interval(gt=0, le=1)] | None = None,
        times: Sequence[Positive] | None = None,
        unit: Unit = "t",
        sections: Sequence[Count] | None = None,
    ) -> None:
        for part, given in (("predictor", predictor), ("corrector", corrector)):
            if given is not None and (isinstance(given, type) or not callable(given)):
                raise ValueError(f"{part}={given!r} is not a {part}: write for example Sampler(DDIM(), steps=50)")
        for key, given, name in (("times", times, "explicit"), ("sections", sections, "sections")):
            if (not given) == (spacing == name):
                raise ValueError(f"sampler.{key} and sampler.spacing={name} go together: give both, or neither")
            if given and not (t_start is None and t_end is None):
                raise ValueError(f"sampler.{key} says all times: leave out sampler.t_start and sampler.t_end")
        if dynamic_threshold is not None and clip:
            raise ValueError("sampler.dynamic_threshold is a quantile, such as 0.995, in place of clip=true")
        self.predictor, self.corrector = predictor, corrector
        self.times, self.unit, self.sections, self.dynamic_threshold = times, unit, sections, dynamic_threshold
        self.steps, self.spacing, self.rho, self.t_start, self.t_end = steps, spacing, rho, t_start, t_end
        self.denoise, self.clip, self.start = denoise, clip, start
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    def timesteps(self, denoiser: Denoiser) -> Tensor:
        """The decreasing timesteps for this denoiser's process, (S,), float64.

        Raises:
            ValueError: if the process has no such timesteps, or they do not start at the noise level of x.
        """
        process = denoiser.process
        if process.levels == 1 and self.predictor is not None:
            raise ValueError("a single noise level leaves a predictor no step to make: use sampler=langevin")
        control, start = denoiser.control, getattr(denoiser.control, "t_start", None)
        if start is not None and self.spacing in ("explicit", "sections"):
            raise ValueError(f"control={control.name} chooses the first time: leave out sampler.spacing={self.spacing}")
        if self.times is not None:
            times = explicit(process, self.times, self.unit)
        elif self.sections is not None:
            times = sectioned(process, self.sections)
        else:
            times = process.timesteps(self.steps, self.spacing, self.rho, start or self.t_start, self.t_end)
        if control is not None:
            control.check(times)
        if start is not None or self.times is not None:
            return times
        std, sigma = self.prior_std(process), process.sigma(times[0]).item()
        if self.predictor is not None and self.start == "prior" and sigma < std / 2:
            raise ValueError(
                f"sampling would start from noise of standard deviation {std:.3g}, but at the first of {len(times)} "
                f"times of sampler.spacing={self.spacing} it is {sigma:.3g}: use sampler.spacing=trailing"
            )
        return times

    def caution(self, denoiser: Denoiser, times: Tensor | None = None) -> str | None:
        """A warning if the timesteps start where some signal is left, although x starts as pure noise; else None."""
        times, process = self.timesteps(denoiser) if times is None else times, denoiser.process
        chosen_start = getattr(denoiser.control, "t_start", None) is not None
        if self.predictor is None or self.start != "prior" or process.keeps_signal or chosen_start:
            return None
        latest = None if self.times is not None else process.span(self.t_start, self.t_end, self.spacing)[0]
        return signal_left(process, times, latest)

    def check(self, denoiser: Denoiser) -> Tensor:
        """`timesteps`; raises ValueError also if the steps between them cannot be made."""
        times = self.timesteps(denoiser)
        self.instructions(denoiser, self.steps_between(times, denoiser), thresholded=False, count=2)
        return times

    def steps_between(self, times: Tensor, denoiser: Denoiser) -> ScalarProcess:
        """The process at these timesteps; raises ValueError if the predictor cannot step between them, or be guided."""
        check_mean_gradient(denoiser, self.predictor, self.corrector)
        p = ScalarProcess(denoiser.process, times, self.denoise)
        if isinstance(self.predictor, Step):
            self.predictor.check(p)
        return p

    def follow(self, engine: Engine, x: Any) -> Iterator[tuple[float, Any]]:
        """(t, x) after every step from the initial state x, with the forms or tensors of an engine."""
        times, control, engine.corrected = engine.p.times, engine.denoiser.control, self.corrector is not None
        controlled = (lambda x, t: x) if control is None else lambda x, t: engine.apply("control", control, x, t)
        path = times if control is None else control.path(times)
        for t, s in zip(path, [*path[1:], None], strict=True):
            if s is not None and s > t:
                x = engine.apply("back", control, x, t, s)
                continue
            if self.corrector is not None:
                x = controlled(engine.apply("correct", self.corrector, x, t), t)
            if s is not None and self.predictor is not None:
                x = controlled(engine.apply("step", self.predictor, x, t, s), s)
                yield s, x
            elif self.predictor is None:
                yield t, x
        if self.denoise:
            yield 0.0, controlled(engine.apply("last", self.predictor, x, t), None)
        elif self.predictor is not None:
            yield t, x

    def instructions(
        self, denoiser: Denoiser, p: ScalarProcess, thresholded: bool, shown: bool = False, count: int | None = None
    ) -> list[Instruction]:
        """Record the first `count` steps, or all; start again without recording whenever a step is not linear."""
        as_written: list[Any] = []
        while True:
            recorder = Recorder(denoiser, p, thresholded, as_written)
            try:
                return recorder.follow(islice(self.follow(recorder, Form({0: 1.0})), count), shown)
            except NotLinear as error:
                as_written.append(error.step)

    def written(self, denoiser: Denoiser, times: Tensor, like: Tensor) -> Written:
        """An engine that runs the steps as they are written, on batches like `like` (B, ...)."""
        threshold = chosen(denoiser.parameterization.range_of(like.shape), self.clip, self.dynamic_threshold)
        return Written(denoiser, self.steps_between(times, denoiser), like, threshold, self.corrector is not None)

    def record(self, denoiser: Denoiser, like: Tensor, shown: bool = False, times: Tensor | None = None) -> Plan:
        """The sampler recorded for batches like `like` (B, ...), with all coefficients computed in float64.

        With `shown` it yields the state after every step, with x_0, instead of the last state only.  Its initial state
        is noise, or that of times[0].

        Raises:
            ValueError: if the process has no such timesteps, or a step cannot be made.
        """
        if times is None and (said := self.caution(denoiser, times := self.timesteps(denoiser))):
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

    def adds_no_noise(self, denoiser: Denoiser) -> bool:
        """`inversion.steps_without_noise`."""
        return steps_without_noise(self, denoiser)

    def invert(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """The noise x_1 from which this sampler leads to x_0 (B, ...); raises ValueError as `inversion.inverted`."""
        return inverted(self, denoiser, x0)

    def prior_std(self, process: NoiseProcess) -> float:
        """Standard deviation of the initial noise: the process's prior_std, scaled to the first timestep."""
        start, _ = process.span(self.t_start, self.t_end, self.spacing)
        if self.times is not None:
            start = explicit(process, self.times, self.unit)[0].item()
        first, one = process.sigma(torch.tensor([start, 1.0], dtype=torch.float64)).tolist()
        return process.prior_std * (first / one)

    def prior(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu"
    ) -> Tensor:
        """x_1 of `shape` (B, ...)."""
        return self.beginning(denoiser, shape)(draw(shape, generator, self.dtype, device))

    def beginning(self, denoiser: Denoiser, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """The map from noise z ~ N(0, I) to the initial x of `shape` (B, ...)."""
        first = None if denoiser.control is None else self.timesteps(denoiser)[0]
        return initial_state(denoiser, shape, self.start, self.prior_std(denoiser.process), first)

    def prepare(
        self, denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Callable[[Generators], Tensor]:
        """Record the sampler for `shape` (B, ...); a function from one generator, or one per image, to samples."""
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
        """Samples of `shape` (B, ...) in the model's range, from one generator or one per image."""
        return self.prepare(denoiser, shape, device)(generator)
