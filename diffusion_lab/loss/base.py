"""Losses that compare the denoiser with noised data at one sampled time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.time_law import TimeLaw, Uniform
from diffusion_lab.noise import Generators, draw


class OneTimeLoss(nn.Module, ABC):
    """A loss at one time per image, with t sampled by a time law and eps ~ N(0, I).

    Args:
        time_law: law of the training times; None: uniform.
    """

    def __init__(self, time_law: TimeLaw | None = None) -> None:
        super().__init__()
        self.time_law = Uniform() if time_law is None else time_law

    def forward(
        self, denoiser: Denoiser, x0: Tensor, generator: Generators = None, noise: Tensor | None = None
    ) -> Tensor:
        """Loss of each image, shape (B,), for x0 of shape (B, ...) and one generator, or one per image.

        `noise` (B, ...) is paired with x0 (reflow); None: drawn.
        """
        t, weight = self.time_law.sample(denoiser.process, len(x0), x0.device, generator)
        losses = self.at(denoiser, x0, t, *self.draws(denoiser, x0, generator, noise))
        if generator is None:
            self.time_law.update(denoiser.process, t, losses.detach())
        return weight.to(losses) * losses

    def draws(
        self, denoiser: Denoiser, x0: Tensor, generator: Generators, noise: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The random arguments of `at`: here the noise eps (B, ...), that of `forward` if it was given."""
        return (draw(x0.shape, generator, x0.dtype, x0.device) if noise is None else noise,)

    @abstractmethod
    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,) and noise eps (B, ...)."""
