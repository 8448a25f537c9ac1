"""Down- and upsampling by two without aliasing, by a fixed binomial low-pass filter as in StyleGAN2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.layers import variance_scaling


class Fir(nn.Module):
    """The filter k = [1, 3, 3, 1] / 8 along rows and columns, times `gain`: one depthwise convolution.

    (Zhang 2019; Karras et al. 2020, official code.) The image is padded with zeros. The filter coefficients are
    integers over a power of two, exact in every precision; they are not parameters and not in the state dict.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        k = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", gain * torch.outer(k, k), persistent=False)

    def taps(self, channels: int) -> Tensor:
        return self.kernel.expand(channels, 1, 4, 4)


class FirHalve(Fir):
    """y = every second pixel of k * x, centred between two pixels: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.taps(x.shape[1]), stride=2, padding=1, groups=x.shape[1])


class FirDouble(Fir):
    """y = 4 k * (x with zeros between its pixels): (B, C, H, W) -> (B, C, 2H, 2W); the 4 makes up for the zeros."""

    def __init__(self) -> None:
        super().__init__(gain=4.0)

    def forward(self, x: Tensor) -> Tensor:
        # The transposed convolution skips the zeros: the same result as zero insertion in a tenth of the time.
        return F.conv_transpose2d(x, self.taps(x.shape[1]), stride=2, padding=1, groups=x.shape[1])


class FirDownsample(Fir):
    """The filter, then a 3x3 convolution of stride 2: (B, C, H, W) -> (B, out_channels, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = variance_scaling(nn.Conv2d(channels, out_channels or channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.taps(x.shape[1]), padding=2, groups=x.shape[1]))


class FirUpsample(Fir):
    """A 3x3 transposed convolution of stride 2, then the filter: (B, C, H, W) -> (B, out_channels, 2H, 2W)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__(gain=4.0)
        self.conv = variance_scaling(nn.ConvTranspose2d(channels, out_channels or channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        # The bias is added after the filter, which would attenuate it near the border.
        h = F.conv_transpose2d(x, self.conv.weight, stride=2)
        return F.conv2d(h, self.taps(h.shape[1]), self.conv.bias, padding=1, groups=h.shape[1])
