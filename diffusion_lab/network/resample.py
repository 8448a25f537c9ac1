"""Down- and upsampling by two: with or without a convolution, with or without a low-pass filter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.fir import FirDouble, FirDownsample, FirHalve, FirUpsample
from diffusion_lab.network.layers import conv3x3, variance_scaling


class Downsample(nn.Module):
    """3x3 convolution of stride 2 (Ho et al. 2020, official code): (B, C, H, W) -> (B, out_channels, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = variance_scaling(nn.Conv2d(channels, out_channels or channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's SAME padding for even sizes: one row at the bottom and one column on the right.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 convolution (as above): (B, C, H, W) -> (B, out_channels, 2H, 2W)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = conv3x3(channels, out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Resampling(NamedTuple):
    """A resampling method: down- and upsampling without weights, and with a convolution (in, out channels)."""

    halve: Callable[[], nn.Module]
    double: Callable[[], nn.Module]
    downsample: Callable[[int, int], nn.Module]
    upsample: Callable[[int, int], nn.Module]


MEAN = Resampling(partial(nn.AvgPool2d, 2), partial(nn.Upsample, scale_factor=2.0), Downsample, Upsample)
FIR = Resampling(FirHalve, FirDouble, FirDownsample, FirUpsample)
