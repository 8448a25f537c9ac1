"""The layers that every network is made of, with the weights they start from."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def variance_scaling(layer: Layer, scale: float = 1.0) -> Layer:
    """Draw a layer's weight with the given variance scale, zero its bias, and return the layer.

    w ~ U(-a, a) with a^2 = 6 max(scale, 1e-10) / (fan_in + fan_out), so that Var(w) = scale / fan_average
    (official code of Ho et al. 2020). Scale 0 stands for 1e-10: the layer starts as almost zero.
    """
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(max(scale, 1e-10)))
    nn.init.zeros_(layer.bias)
    return layer


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    """Affine map (..., in_features) -> (..., out_features), drawn by `variance_scaling`."""
    return variance_scaling(nn.Linear(in_features, out_features), scale)


def conv1x1(in_channels: int, out_channels: int, scale: float = 1.0) -> nn.Conv2d:
    """Affine map over the channels of each pixel, drawn by `variance_scaling`."""
    return variance_scaling(nn.Conv2d(in_channels, out_channels, 1), scale)


def conv3x3(in_channels: int, out_channels: int, scale: float = 1.0) -> nn.Conv2d:
    """3x3 convolution that keeps the resolution, drawn by `variance_scaling`."""
    return variance_scaling(nn.Conv2d(in_channels, out_channels, 3, padding=1), scale)


def group_norm(channels: int, groups: int, least: int | None = None) -> nn.GroupNorm:
    """Group normalisation with DDPM's epsilon, 1e-6; ValueError where groups do not divide channels.

    With `least`, there are fewer groups where they would have less than this many channels each.
    """
    if least is not None:
        groups = min(groups, channels // least)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into groups={groups}: set groups to a divisor of {channels}, "
            f"such as {math.gcd(channels, groups)}"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Dropout(nn.Dropout):
    """In training each number is 0 with probability p, and else divided by 1 - p (Srivastava et al. 2014).

    On a CPU torch draws probabilities one by one in a single thread, for which all others wait; it does so with whole
    numbers as well, in a third of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        draws = self.training and 0 < self.p < 1
        if not draws or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        kept = torch.empty_like(x, dtype=torch.int32).random_() >= int(self.p * 2**31)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))
