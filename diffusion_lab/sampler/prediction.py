"""What a sampler's step sees of the network: its prediction at one x and t, as x_0, as eps or as the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Weights = tuple[float, float]
"""Of x and of the network's output."""


class Coefficients(NamedTuple):
    """How x_0, eps and the score follow from x and the network's output at one time; all are linear in both."""

    alpha: float
    sigma: float
    x0: Weights
    eps: Weights
    score: Weights


def coefficients(alpha: float, sigma: float, eps: Callable[..., float] | None) -> Coefficients:
    """Of x_0 = (x - sigma eps) / alpha and score = -eps / sigma.

    Args:
        eps: (output, x, alpha, sigma) -> eps, as `Parameterization` has it; None where the output is x_0.
    """
    if eps is None:
        by_x, by_output = 1 / sigma, -alpha / sigma
        x0 = (0.0, 1.0)
    else:  # eps is linear in x and the output, so its values at (1, 0) and (0, 1) say all of it
        by_x, by_output = eps(0.0, 1.0, alpha, sigma), eps(1.0, 0.0, alpha, sigma)
        left = 1 - sigma * by_x
        x0 = (left / alpha if abs(left) > 1e-15 else 0.0, -sigma * by_output / alpha)  # no trace of x by rounding alone
    return Coefficients(alpha, sigma, x0, (by_x, by_output), (-by_x / sigma, -by_output / sigma))


class Prediction:
    """The network's prediction at x = alpha x_0 + sigma eps and t.

    x and the output are tensors or, while a sampler is recorded, linear forms.
    """

    __slots__ = ("at", "output", "t", "x")

    def __init__(self, t: float, x: Any, output: Any, at: Coefficients) -> None:
        self.t, self.x, self.output, self.at = t, x, output, at

    def _combine(self, weights: Weights) -> Any:
        by_x, by_output = weights
        return by_output * self.output if by_x == 0 else by_x * self.x + by_output * self.output

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
