"""Controls that know a linear measurement y = A x_0 + noise of each image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import Self  # in typing from Python 3.11 on

from diffusion_lab.control.base import Control
from diffusion_lab.control.operator import LinearOperator, Mask
from diffusion_lab.ranges import NonNegative, checked


class Measured(Control):
    """A control with a measurement y = A x_0 + N(0, noise^2 I) for each image of a series.

    Args:
        operator: A.
        guide: measurements (N, ...), in [0, 1] like the data; image i of a series has guide i mod N.  Images
            themselves are measured by A first, where y has another shape.
        noise: standard deviation of the measurement's noise, in the unit of the guide.
    """

    @checked
    def __init__(self, operator: LinearOperator, guide: Tensor, noise: NonNegative = 0.0) -> None:
        if guide.dim() < 2 or not len(guide):
            raise ValueError(f"guide of shape {tuple(guide.shape)} must be images (N, C, H, W)")
        self.operator, self.guide, self.std = operator, guide, noise

    def of(self, images: Sequence[int], encode: Callable[[Tensor], Tensor], like: Tensor) -> Self:
        bound = copy.copy(self)
        bound.operator, index = self.operator.to(like), [i % len(self.guide) for i in images]
        mask = getattr(bound.operator, "mask", None)
        if mask is not None and mask.dim() == like.dim() and len(mask) > 1:  # a mask for each guide
            bound.operator = Mask(mask[[i % len(mask) for i in images]])
        low, high = encode(torch.tensor([0.0, 1.0])).tolist()
        guide = encode(self.guide[index].to(like))
        try:
            measured = bound.operator(like)
            given_as_measurement = guide.shape == measured.shape and mask is None  # a blurred image is as large as x
            bound.guide = guide if given_as_measurement or guide.shape != like.shape else bound.operator(guide)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the measurement does not fit images of shape {tuple(like.shape[1:])}: {error}") from None
        if bound.guide.shape != measured.shape or measured.shape[0] != len(like):
            raise ValueError(
                f"guide of shape {tuple(self.guide.shape[1:])} does not fit: for images of shape "
                f"{tuple(like.shape[1:])} it must be {tuple(measured.shape[1:])}"
            )
        bound.std = self.std * (high - low)
        return bound
