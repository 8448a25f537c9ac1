"""The basic layers of all networks, and their initialisation."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion_lab.network import winograd

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def variance_scaling(layer: Layer, scale: float = 1.0) -> Layer:
    """Initialise a layer's weight with the given variance scale and its bias with 0, and return the layer.

    w ~ U(-a, a) with a^2 = 6 max(scale, 1e-10) / (fan_in + fan_out), so that Var(w) = scale / fan_average
    (official code of Ho et al. 2020). With scale 0 (1e-10) the initial weights are almost zero.
    """
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(max(scale, 1e-10)))
    nn.init.zeros_(layer.bias)
    return layer


def linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    """Linear layer (..., in_features) -> (..., out_features), initialised by `variance_scaling`."""
    return variance_scaling(nn.Linear(in_features, out_features), scale)


def conv1x1(in_channels: int, out_channels: int, scale: float = 1.0) -> nn.Conv2d:
    """1x1 convolution, initialised by `variance_scaling`."""
    return variance_scaling(nn.Conv2d(in_channels, out_channels, 1), scale)


def conv3x3(in_channels: int, out_channels: int, scale: float = 1.0) -> nn.Conv2d:
    """3x3 convolution that keeps the resolution, initialised by `variance_scaling`."""
    return variance_scaling(Conv3x3(in_channels, out_channels), scale)


class Conv3x3(nn.Conv2d):
    """3x3 convolution that keeps the resolution: (B, in_channels, H, W) -> (B, out_channels, H, W).

    Where it is faster, it is computed by Winograd's algorithm.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return winograd.conv3x3(x, self.weight, self.bias, self.dilation[0])


def group_norm(
    channels: int, groups: int, min_group_size: int | None = None, kind: type[nn.GroupNorm] = nn.GroupNorm
) -> nn.GroupNorm:
    """Group normalisation with DDPM's epsilon, 1e-6; raises ValueError unless `groups` divides `channels`.

    With `min_group_size` the number of groups is reduced so that each has at least this many channels.
    """
    if min_group_size is not None:
        groups = min(groups, channels // min_group_size)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into groups={groups}: set groups to a divisor of {channels}, "
            f"such as {math.gcd(channels, groups)}"
        )
    return kind(groups, channels, eps=1e-6)


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014), faster on the CPU: the mask is drawn as integers.

    On a CPU torch generates random numbers in a single thread; integers take a third of the time of probabilities.
    """

    def forward(self, x: Tensor) -> Tensor:
        active = self.training and 0 < self.p < 1
        if not active or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = torch.empty_like(x, dtype=torch.int32).random_() < int(self.p * 2**31)
        return torch.where(dropped, 0, x).mul_(1 / (1 - self.p))
