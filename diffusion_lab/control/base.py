"""The interface of controls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffusion_lab.denoiser import Denoiser


def of_images(values: Tensor, images: Sequence[int]) -> Tensor:
    """The value of each image of a series by its index: values[i mod N], (B, ...)."""
    return values[[i % len(values) for i in images]]


def mask_of(mask: Tensor, images: Sequence[int], like: Tensor) -> Tensor:
    """A mask on the device of `like` (B, ...), in its dtype: that of each image, where there are several."""
    several = mask.dim() == like.dim() and len(mask) > 1
    return (of_images(mask, images) if several else mask).to(like)


class Control(ABC):
    """Makes samples agree with a guide: by changing states x_t between the steps of a sampler, or the estimates.

    `of` returns the control of a batch, and calling that with a denoiser returns the denoiser to sample with.  A
    control overrides those of the other methods that it needs.  States are (B, ...), in the model's range.
    """

    name: str
    t_start: float | None = None
    """The time at which sampling starts; None: the sampler's."""

    @abstractmethod
    def of(self, images: Sequence[int], encode: Callable[[Tensor], Tensor], like: Tensor) -> Control:
        """This control for the images of a series with these indices, with tensors like `like` (B, ...).

        Args:
            encode: from data in [0, 1] to the model's range.

        Raises:
            ValueError: if guide, mask or measurement do not fit the images.
        """

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser to sample with: the same estimates, with this control of the states."""
        return denoiser.controlled(self)

    def __str__(self) -> str:
        settings = [f"{key}={value:g}" for key, value in vars(self).items() if isinstance(value, int | float)]
        return f"{self.name} ({', '.join(settings)})" if settings else self.name

    @property
    def moves(self) -> bool:
        """Whether the control changes states, so that a prediction made before a change no longer holds."""
        return (type(self).after, type(self).step) != (Control.after, Control.step)

    def check(self, times: Tensor) -> None:  # noqa: B027
        """Raise ValueError if the control does not suit the sampler's timesteps (S,)."""

    def path(self, times: list[float]) -> list[float]:
        """The times through which the states pass; x is diffused where a time is later than the one before it."""
        return times

    def begin(self, x: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """The initial state at (alpha, sigma), from the sampler's x and the noise z ~ N(0, I) it is made of."""
        return x

    def step(
        self, step: Callable[..., Any], p: Any, x: Any, t: float, s: float, denoise: Any, noise: Any, past: Any
    ) -> Any:
        """x at time s, after a step of the sampler from t; the arguments are those of `sampler.Step`."""
        return step(p, x, t, s, denoise, noise, past)

    def after(self, p: Any, x: Any, t: float, noise: Callable[..., Any]) -> Any:
        """The state that replaces x at time t, after a step of the predictor or the corrector."""
        return x

    def finish(self, x0: Any) -> Any:
        """The sample that replaces x_0."""
        return x0
