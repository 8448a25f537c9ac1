"""What a sampler's step sees of the network: its prediction at one x and t, as x_0, as eps or as the score."""

from __future__ import annotations

from typing import Any

from diffusion_lab.parameterization import Parameterization


class Prediction:
    """The network's prediction at x = alpha x_0 + sigma eps and t, seen four ways.

        x0 = (x - sigma eps) / alpha,   score = -eps / sigma,   v = alpha eps - sigma x0

    All are linear in x and the output, which are tensors or, while a sampler is recorded, linear forms.

    Args:
        row: meaning of the output; None where it is x_0 itself.
    """

    __slots__ = ("alpha", "output", "row", "sigma", "t", "x")

    def __init__(
        self, t: float, x: Any, output: Any, alpha: float, sigma: float, row: Parameterization | None
    ) -> None:
        self.t, self.x, self.output, self.alpha, self.sigma, self.row = t, x, output, alpha, sigma, row

    def _eps(self) -> tuple[float, float]:
        """Coefficients of x and the output in eps."""
        if self.row is None:
            return 1 / self.sigma, -self.alpha / self.sigma
        # eps is linear in both, so its values at (1, 0) and (0, 1) say all of it.
        return (
            self.row.eps(0.0, 1.0, self.alpha, self.sigma),
            self.row.eps(1.0, 0.0, self.alpha, self.sigma),
        )

    def _combine(self, by_x: float, by_output: float) -> Any:
        return by_output * self.output if by_x == 0 else by_x * self.x + by_output * self.output

    @property
    def x0(self) -> Any:
        """The clean image E[x_0 | x] (Tweedie's formula)."""
        if self.row is None:
            return self.output
        by_x, by_output = self._eps()
        return self._combine((1 - self.sigma * by_x) / self.alpha, -self.sigma * by_output / self.alpha)

    @property
    def eps(self) -> Any:
        """The noise."""
        return self._combine(*self._eps())

    @property
    def score(self) -> Any:
        """grad log p_t(x)."""
        by_x, by_output = self._eps()
        return self._combine(-by_x / self.sigma, -by_output / self.sigma)

    @property
    def v(self) -> Any:
        """Velocity of Salimans & Ho 2022."""
        return self.alpha * self.eps - self.sigma * self.x0
