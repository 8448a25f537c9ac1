"""What calls a sampler's steps: with tensors (`Written`), or with linear forms (`record.Recorder`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Preconditioning
from diffusion_lab.sampler.prediction import Coefficients, Prediction, coefficients
from diffusion_lab.sampler.scalar_process import ScalarProcess

HISTORY = 8
"""Predictions that a step may look back at."""

Threshold = Callable[[Tensor], Tensor]
"""What is done to each prediction of x_0: clipping, dynamic thresholding."""


class Engine(ABC):
    """Calls steps and keeps their predictions.

    Args:
        denoiser, p: the network and its process at the sampler's times.
        thresholded: whether the sampler changes each prediction of x_0.
    """

    def __init__(self, denoiser: Denoiser, p: ScalarProcess, thresholded: bool) -> None:
        self.denoiser, self.p, self.thresholded = denoiser, p, thresholded
        self.past: deque[Prediction] = deque(maxlen=HISTORY)
        self.latest: Prediction | None = None
        self._coefficients: dict[tuple[float, bool], Coefficients] = {}

    def predicted(self, t: float, x: Any, output: Any) -> Prediction:
        """The prediction in the network's output, or in x_0 where a threshold has changed it; later steps see it."""
        key = t, self.thresholded
        if key not in self._coefficients:
            eps = None if self.thresholded else self.denoiser.parameterization.eps
            self._coefficients[key] = coefficients(*self.p.alpha_sigma(t), eps)
        self.latest = prediction = Prediction(t, x, output, self._coefficients[key])
        self.past.appendleft(prediction)
        return prediction

    @abstractmethod
    def noise(self, std: float = 1.0) -> Any:
        """Fresh noise, N(0, std^2 I)."""

    @abstractmethod
    def denoise(self, x: Any, t: float) -> Prediction:
        """The network's prediction at x and t."""

    def step(self, step: Callable[..., Any], x: Any, t: float, s: float) -> Any:
        """x after a step from t to s."""
        return step(self.p, x, t, s, self.denoise, self.noise, list(self.past))

    def last(self, step: Callable[..., Any] | None, x: Any, t: float) -> Any:
        """x_0 at the end: as the step before has it in `last`, else as predicted at x and t (Tweedie's formula)."""
        if not hasattr(step, "last"):
            return self.denoise(x, t).x0
        return step.last(self.p, x, t, self.denoise, self.noise, list(self.past))

    def correct(self, corrector: Callable[..., Any], x: Any, t: float) -> Any:
        """x after a corrector at t, whose score no threshold changes; predictions at t, of another x, are forgotten."""
        past, thresholded, self.thresholded = self.before(t), self.thresholded, False
        try:
            return corrector(self.p, x, t, self.denoise, self.noise)
        finally:
            self.past, self.thresholded = past, thresholded

    def before(self, t: float) -> deque[Prediction]:
        """The predictions at other times than t."""
        return deque((prediction for prediction in self.past if prediction.t != t), HISTORY)


class Written(Engine):
    """Runs steps as they are written, on tensors.

    Args:
        like: (B, ...), of the shape, dtype and device of x.
        threshold: applied to predictions of x_0; None where none is.
    """

    def __init__(self, denoiser: Denoiser, p: ScalarProcess, like: Tensor, threshold: Threshold | None) -> None:
        super().__init__(denoiser, p, threshold is not None)
        self.like, self.threshold, self.stream = like, threshold, None
        self._preconditionings: dict[float, Preconditioning] = {}

    def start(self, stream: Callable[[], Tensor]) -> None:
        """Begin with a batch whose noise `stream` gives."""
        self.stream, self.latest = stream, None
        self.past.clear()

    def noise(self, std: float = 1.0) -> Tensor | float:
        return std * self.stream() if std else 0.0

    def denoise(self, x: Tensor, t: float) -> Prediction:
        read = self.bounded if self.thresholded else self.denoiser.network_output
        output = read(x, self.preconditioning(t))
        return self.predicted(t, x, output if output.dtype is x.dtype else output.to(x.dtype))

    def bounded(self, x: Tensor, preconditioning: Preconditioning) -> Tensor:
        """The prediction of x_0 at x after the sampler's threshold."""
        output = self.denoiser.network_output(x, preconditioning)
        return self.threshold((x * preconditioning.c_skip).addcmul_(output, preconditioning.c_out))

    def preconditioning(self, t: float) -> Preconditioning:
        """How the network is called at t; for the whole grid at once."""
        if t not in self._preconditionings:
            times = [t] if self._preconditionings or t not in self.p.times else list(dict.fromkeys(self.p.times))
            each = self.denoiser.preconditionings(torch.tensor(times, dtype=torch.float64), self.like)
            self._preconditionings.update(zip(times, each, strict=True))
        return self._preconditionings[t]
