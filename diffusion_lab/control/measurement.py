"""Controls that know a linear measurement y = A x_0 + noise of each image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self  # in typing from Python 3.11 on

from diffusion_lab.control.base import Control, of_images
from diffusion_lab.control.deep_inverse import DeepInverse
from diffusion_lab.control.operator import LinearOperator
from diffusion_lab.ranges import NonNegative, checked


class Measured(Control):
    """A control with a measurement y = A x_0 + N(0, noise^2 I) for each image of a series.

    Args:
        operator: A, also a `deepinv.physics.LinearPhysics`.
        guide: measurements (N, ...), in [0, 1] like the data; image i of a series has guide i mod N.  Images
            themselves are measured by A first, where y has another shape.
        noise: standard deviation of the measurement's noise, in the unit of the guide.
    """

    @checked
    def __init__(self, operator: LinearOperator | nn.Module, guide: Tensor, noise: NonNegative = 0.0) -> None:
        if guide.dim() < 2 or not len(guide):
            raise ValueError(f"guide of shape {tuple(guide.shape)} must be images (N, C, H, W)")
        self.operator = operator if isinstance(operator, LinearOperator) else DeepInverse(operator)
        self.guide, self.std = guide, noise

    def of(self, images: Sequence[int], encode: Callable[[Tensor], Tensor], like: Tensor) -> Self:
        bound = copy.copy(self)
        low, high = encode(torch.tensor([0.0, 1.0])).tolist()
        guide = of_images(self.guide, images).to(like)
        try:
            bound.operator = self.operator.of(images, like)
            ones = bound.operator(torch.ones_like(like))
            # What has the size of a measurement is one, unless measuring it again changes nothing but unknown pixels.
            if guide.shape == like.shape and (bound.operator.projects or guide.shape != ones.shape):
                bound.guide = bound.operator(encode(guide))
            else:
                bound.guide = (high - low) * guide + low * ones if guide.shape == ones.shape else guide
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the measurement does not fit images of shape {tuple(like.shape[1:])}: {error}") from None
        if bound.guide.shape != ones.shape or len(ones) != len(like):
            raise ValueError(
                f"guide of shape {tuple(self.guide.shape[1:])} does not fit: for images of shape "
                f"{tuple(like.shape[1:])} it must be {tuple(ones.shape[1:])}"
            )
        bound.std = self.std * (high - low)
        return bound
