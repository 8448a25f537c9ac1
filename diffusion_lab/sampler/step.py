"""What a sampler's step is: one function, written as its paper prints it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from diffusion_lab.sampler.prediction import Prediction
from diffusion_lab.sampler.scalar_process import ScalarProcess

Denoise = Callable[[Any, float], Prediction]
"""(x, t) -> the network's prediction."""

Noise = Callable[..., Any]
"""(std = 1) -> fresh noise, N(0, std^2 I)."""


class Step(ABC):
    """A step of a sampler from x at time t to time s < t.

    `x` is a tensor or, while the sampler is recorded, a linear form: sums, and products with numbers, are recorded and
    replayed fast; anything else makes the step run on tensors, as it is written.  A plain function of the same
    arguments is a step as well.  A method `last(p, x, t, denoise, noise, past)`, where there is one, makes the step to
    data from the last time, in place of the denoising step.
    """

    @abstractmethod
    def __call__(
        self, p: ScalarProcess, x: Any, t: float, s: float, denoise: Denoise, noise: Noise, past: list[Prediction]
    ) -> Any:
        """x at time s.

        Args:
            p: alpha, sigma, lambda, ... of the process at any time, as Python floats.
            denoise: (x, t) -> the network's prediction there, with `x0`, `eps` and `score`.
            noise: (std) -> fresh noise, N(0, std^2 I).
            past: predictions of the steps before, the latest first.

        Raises:
            ValueError: if the step cannot be made.
        """


class Corrector(ABC):
    """`steps` steps that move x at fixed noise towards p_t (Song et al. 2021, Section 4.2)."""

    steps: int

    @abstractmethod
    def __call__(self, p: ScalarProcess, x: Any, t: float, denoise: Denoise, noise: Noise) -> Any:
        """x after the steps at time t."""


def interval(p: ScalarProcess, t: float, s: float) -> float:
    """h = lambda_s - lambda_t of a step.

    Raises:
        ValueError: if it is not positive, for steps that divide by it.
    """
    if not s < t:
        raise ValueError(
            "this grid repeats levels, and the sampler needs steps of some length: use fewer sampler.steps, or "
            "another sampler.spacing"
        )
    return p.lambda_(s) - p.lambda_(t)
