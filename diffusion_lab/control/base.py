"""What a control of a sampler's states may do; every control overrides the part that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class Control:
    """Changes the states x_t that a sampler passes through; `denoiser.controlled(control)` binds it.

    A control holds the measurements of one batch, in the model's range and on its device (`of`).  States are (B, ...).
    """

    t_start: float | None = None
    """The time at which sampling starts; None: the sampler's."""

    def of(self, images: Sequence[int], encode: Callable[[Tensor], Tensor], like: Tensor) -> Control:
        """This control for the images of a series with these indices, with tensors like `like` (B, ...).

        Args:
            encode: from data in [0, 1] to the model's range.

        Raises:
            ValueError: if the measurements do not fit the images.
        """
        return self

    def check(self, times: Tensor) -> None:
        """Raise ValueError if the control does not suit the sampler's timesteps (S,)."""

    def path(self, times: list[float]) -> list[float]:
        """The times that states pass through; where a time is later than the one before, x is diffused to it."""
        return times

    def begin(self, x: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """The initial state, from the sampler's x and the noise z ~ N(0, I) of which it is made, at (alpha, sigma)."""
        return x

    def step(
        self, step: Callable[..., Any], p: Any, x: Any, t: float, s: float, denoise: Any, noise: Any, past: Any
    ) -> Any:
        """x at s: a step of the sampler from t to s, with the arguments of `sampler.Step`."""
        return step(p, x, t, s, denoise, noise, past)

    def after(self, p: Any, x: Any, t: float, noise: Callable[..., Any]) -> Any:
        """The state that takes the place of x at time t, after a step of the predictor or the corrector."""
        return x

    def finish(self, x0: Any) -> Any:
        """The sample that takes the place of x_0."""
        return x0
