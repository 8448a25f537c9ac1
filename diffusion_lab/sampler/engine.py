"""Engines call a sampler's steps: with tensors (`Written`), or with linear forms (`record.Recorder`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Preconditioning
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Coefficients, Prediction, coefficients
from diffusion_lab.sampler.threshold import Threshold

HISTORY = 8
"""Number of past predictions that a step may use."""

Kind = Literal["step", "correct", "last", "back", "control"]
"""The methods of an `Engine` that call a step."""


class Engine(ABC):
    """Calls steps and keeps their past predictions.

    Args:
        denoiser, p: the network and its process at the sampler's times.
        thresholded: whether the sampler changes each prediction of x_0; for a corrector, which takes the score, it
            never does.
    """

    corrected = False
    """Whether a corrector moves x before each step; the sampler sets it."""

    def __init__(self, denoiser: Denoiser, p: ScalarProcess, thresholded: bool) -> None:
        self.denoiser, self.p, self.thresholded = denoiser, p, thresholded
        self.controlled = denoiser.control is not None and denoiser.control.moves
        self.past: list[Prediction] = []
        self.latest: Prediction | None = None
        self._coefficients: dict[tuple[float, bool], Coefficients] = {}

    @abstractmethod
    def noise(self, std: float = 1.0) -> Any:
        """Fresh noise, N(0, std^2 I)."""

    @abstractmethod
    def predict(self, x: Any, t: float, thresholded: bool) -> Prediction:
        """The network's prediction at x and t."""

    def coefficients(self, t: float, thresholded: bool) -> Coefficients:
        """Coefficients of a prediction; of a thresholded one the output is x_0."""
        key = t, thresholded
        if key not in self._coefficients:
            eps = None if thresholded else self.denoiser.parameterization.eps
            self._coefficients[key] = coefficients(*self.p.alpha_sigma(t), eps)
        return self._coefficients[key]

    def denoise(self, x: Any, t: float) -> Prediction:
        """The network's prediction at x and t, which later steps see."""
        prediction = self.predict(x, t, self.thresholded)
        self.past = [prediction, *self.past[: HISTORY - 1]]
        return prediction

    def predict_score(self, x: Any, t: float) -> Prediction:
        """The network's own prediction at x and t, which later steps do not see."""
        return self.predict(x, t, False)

    def before(self, t: float) -> list[Prediction]:
        """Past predictions for a step at t, without those at t where a corrector or a control has moved x since."""
        return [one for one in self.past if one.t != t] if self.corrected or self.controlled else self.past

    def apply(self, kind: Kind, step: Callable[..., Any] | None, x: Any, *times: float) -> Any:
        """x after a step, by the method of this name."""
        return getattr(self, kind)(step, x, *times)

    def step(self, step: Callable[..., Any], x: Any, t: float, s: float) -> Any:
        """x after a step from t to s, through the denoiser's control if it has one."""
        arguments = self.p, x, t, s, self.denoise, self.noise, self.before(t)
        control = self.denoiser.control
        return step(*arguments) if control is None else control.step(step, *arguments)

    def correct(self, corrector: Callable[..., Any], x: Any, t: float) -> Any:
        """x after a corrector at t, whose predictions are its own."""
        return corrector(self.p, x, t, self.predict_score, self.noise)

    def last(self, step: Callable[..., Any] | None, x: Any, t: float) -> Any:
        """x_0 at the end: as the step before has it in `last`, else as predicted at x and t (Tweedie's formula)."""
        if not hasattr(step, "last"):
            return self.denoise(x, t).x0
        return step.last(self.p, x, t, self.denoise, self.noise, self.before(t))

    def back(self, control: Any, x: Any, t: float, s: float) -> Any:
        """x diffused from t to a later time s, of which past predictions know nothing."""
        self.past = []
        scale, variance = self.p.transition(t, s)
        return scale * x + self.noise(math.sqrt(variance))

    def control(self, control: Any, x: Any, t: float | None) -> Any:
        """x after a control at time t; x_0 if t is None."""
        return control.finish(x) if t is None else control.after(self.p, x, t, self.noise)


class Written(Engine):
    """Runs steps as they are written, on tensors.

    Args:
        like: (B, ...), of the shape, dtype and device of x.
        threshold: applied to predictions of x_0; None where none is.
    """

    def __init__(
        self, denoiser: Denoiser, p: ScalarProcess, like: Tensor, threshold: Threshold | None, corrected: bool = False
    ) -> None:
        super().__init__(denoiser, p, threshold is not None)
        self.corrected = corrected
        self.like, self.threshold = like, threshold
        self._preconditionings: dict[float, Preconditioning] = {}
        self._outputs: dict[tuple[float, bool], Callable[[Tensor], Tensor]] = {}

    def start(self, stream: Callable[[], Tensor]) -> None:
        """Begin a batch; `stream` returns fresh noise, always in the same memory."""
        self.stream, self.latest, self.past = stream, None, []

    def noise(self, std: Tensor | float = 1.0) -> Tensor | float:
        if isinstance(std, Tensor):
            return std * self.stream()
        if std == 1:
            return self.stream().clone()
        return std * self.stream() if std else 0.0

    def coefficients(self, t: float, thresholded: bool) -> Coefficients:
        """As scalar tensors like x, which are faster in operations than Python floats."""
        key = t, thresholded
        if key not in self._coefficients:
            alpha, sigma, *pairs = super().coefficients(t, thresholded)
            scalar = partial(torch.tensor, dtype=self.like.dtype, device=self.like.device)
            pairs = (tuple(None if weight is None else scalar(weight) for weight in pair) for pair in pairs)
            self._coefficients[key] = Coefficients(alpha, sigma, *pairs)
        return self._coefficients[key]

    def predict(self, x: Tensor, t: float, thresholded: bool) -> Prediction:
        if self.denoiser.parameterization.learned_range:
            c = self.preconditioning(t)
            output, fraction = self.denoiser.outputs(x, c)
            output = output.to(x.dtype)
            output = self.bounded(x, output, c) if thresholded else output
        else:
            output, fraction = self.output_at(t, thresholded)(x), None
        gradient = self.denoiser.mean_gradient and partial(self.denoiser.mean_gradient, x, t)
        self.latest = Prediction(t, x, output, self.coefficients(t, thresholded), fraction, gradient)
        return self.latest

    def output_at(self, t: float, thresholded: bool) -> Callable[[Tensor], Tensor]:
        """x -> the network's output at t, or its prediction of x_0 after the sampler's threshold."""
        key = t, thresholded
        if key not in self._outputs:
            c = self.preconditioning(t)
            output = self.denoiser.output_at(c)
            self._outputs[key] = (lambda x: self.bounded(x, output(x), c)) if thresholded else output
        return self._outputs[key]

    def bounded(self, x: Tensor, output: Tensor, c: Preconditioning) -> Tensor:
        """x_0 after the sampler's threshold."""
        return self.threshold((x * c.c_skip).addcmul_(output, c.c_out))

    def preconditioning(self, t: float) -> Preconditioning:
        """The network's preconditioning at t."""
        if t not in self._preconditionings:
            self.prepare([t, *self.p.times])
        return self._preconditionings[t]

    def prepare(self, times: Iterable[float]) -> None:
        """Compute the preconditioning at all of these times at once."""
        new = [t for t in dict.fromkeys(times) if t not in self._preconditionings]
        if new:
            each = self.denoiser.preconditionings(torch.tensor(new, dtype=torch.float64), self.like)
            self._preconditionings.update(zip(new, each, strict=True))
