"""A step of a sampler: one function, written as in its paper, and the predictions it receives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from diffusion_lab.ranges import check_fields
from diffusion_lab.sampler.scalar_process import ScalarProcess

Weights = tuple[Any, Any]
"""Of x, where None is 0, and of the network's output, where None is 1: it is taken as it is."""


class Coefficients(NamedTuple):
    """How x_0, eps and the score follow from x and the network's output at one time; all are linear in both."""

    alpha: float
    sigma: float
    x0: Weights
    eps: Weights
    score: Weights


def coefficients(alpha: float, sigma: float, eps: Callable[..., float] | None) -> Coefficients:
    """The coefficients of x_0 = (x - sigma eps) / alpha and score = -eps / sigma.

    Args:
        eps: (output, x, alpha, sigma) -> eps, as `Parameterization` has it; None where the output is x_0.
    """
    if eps is None:
        by_x, by_output, x0 = 1 / sigma, -alpha / sigma, (None, 1.0)
    else:  # eps is linear in x and the output, so its values at (1, 0) and (0, 1) say all of it
        by_x, by_output = eps(0.0, 1.0, alpha, sigma), eps(1.0, 0.0, alpha, sigma)
        left = 1 - sigma * by_x
        x0 = left / alpha if abs(left) > 1e-15 else None, -sigma * by_output / alpha  # no trace of x by rounding alone
    pairs = x0, (by_x or None, by_output), (-by_x / sigma or None, -by_output / sigma)
    return Coefficients(alpha, sigma, *((of_x, None if of_output == 1 else of_output) for of_x, of_output in pairs))


class Prediction:
    """The network's prediction at x = alpha x_0 + sigma eps and t, as x_0, as eps, as the score or as v.

    x and the output are tensors or, while a sampler is recorded, linear forms.  `fraction` is that of a learned range
    of variances (`Estimate`), or None, and `mean_gradient` the function () -> the gradient by which guidance shifts the
    mean of an ancestral step, or None.
    """

    __slots__ = ("at", "fraction", "mean_gradient", "output", "t", "x")

    def __init__(
        self,
        t: float,
        x: Any,
        output: Any,
        at: Coefficients,
        fraction: Any = None,
        mean_gradient: Callable[[], Any] | None = None,
    ) -> None:
        self.t, self.x, self.output, self.at = t, x, output, at
        self.fraction, self.mean_gradient = fraction, mean_gradient

    def _combine(self, weights: Weights) -> Any:
        by_x, by_output = weights
        output = self.output if by_output is None else by_output * self.output
        return output if by_x is None else by_x * self.x + output

    @property
    def x0(self) -> Any:
        """The clean image E[x_0 | x] (Tweedie's formula)."""
        return self._combine(self.at.x0)

    @property
    def eps(self) -> Any:
        """The noise."""
        return self._combine(self.at.eps)

    @property
    def score(self) -> Any:
        """grad log p_t(x)."""
        return self._combine(self.at.score)

    @property
    def v(self) -> Any:
        """v = alpha eps - sigma x_0 (Salimans & Ho 2022, Appendix D)."""
        return self.at.alpha * self.eps - self.at.sigma * self.x0


@dataclass(frozen=True)
class State:
    """Where a trajectory is: the time, the noisy sample x, and the clean image x0 last predicted, both (B, ...)."""

    t: float
    x: Tensor
    x0: Tensor


Denoise = Callable[[Any, float], Prediction]
"""(x, t) -> the network's prediction."""

Noise = Callable[..., Any]
"""(std = 1) -> fresh noise, N(0, std^2 I)."""


class Options(ABC):  # noqa: B024
    """A dataclass that checks the ranges and options of its fields."""

    def __post_init__(self) -> None:
        check_fields(self)


class Step(Options):
    """A step of a sampler from x at time t to time s < t.

    `x` is a tensor or, while the sampler is recorded, a linear form: sums, and products with numbers, are recorded and
    replayed fast; anything else makes the step run on tensors, as it is written.  A plain function of the same
    arguments is a step as well.  A method `last(p, x, t, denoise, noise, past)`, where there is one, makes the step to
    data from the last time, in place of the denoising step.
    """

    REFUSES: ClassVar = {
        "model.SINGLE_LEVEL": "makes steps between noise levels, and this model has only one: use sampler=langevin"
    }

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
        """

    def check(self, p: ScalarProcess) -> None:
        """Raise ValueError if the steps between the times of p cannot be made."""


class Solver(Step):
    """A step that divides by its length."""

    def check(self, p: ScalarProcess) -> None:
        if len(set(p.times)) < len(p.times):
            raise ValueError(
                "these timesteps repeat levels, and strictly decreasing timesteps are required: use fewer "
                "sampler.steps, or another sampler.spacing"
            )


class Corrector(Options):
    """`steps` steps that move x at fixed noise towards p_t (Song et al. 2021, Section 4.2)."""

    steps: int

    @abstractmethod
    def __call__(self, p: ScalarProcess, x: Any, t: float, denoise: Denoise, noise: Noise) -> Any:
        """x after the steps at time t."""
