"""The pyramids of NCSN++: the image as input, and the output, at every resolution.

(Song et al. 2021, appendix H, after Karras et al. 2020, section 4.1.) Each module is applied at a change of resolution
and maps (pyramid, h) -> (pyramid, h), both of the same resolution afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_lab.network.blocks import join
from diffusion_lab.network.layers import conv1x1

PyramidState = tuple[Tensor | None, Tensor]


class Bypass(nn.Module):
    """No pyramid: the identity."""

    def forward(self, pyramid: Tensor | None, h: Tensor) -> PyramidState:
        return pyramid, h


class InputSkip(nn.Module):
    """p <- halve(p),   h <- h + W p, or [W p, h] with `concatenate`: p is the downsampled image."""

    def __init__(self, halve: nn.Module, image_channels: int, channels: int, concatenate: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = conv1x1(image_channels, channels)
        self.concatenate = concatenate

    def forward(self, pyramid: Tensor, h: Tensor) -> PyramidState:
        pyramid = self.halve(pyramid)
        image = self.conv(pyramid)
        return pyramid, torch.cat([image, h], dim=1) if self.concatenate else image + h


class Residual(nn.Module):
    """p <- R p + h, or (R p + h) / sqrt(2) with `skip_rescale`,   h <- p; R: a resampling convolution."""

    def __init__(self, resample: nn.Module, skip_rescale: bool) -> None:
        super().__init__()
        self.resample = resample
        self.skip_rescale = skip_rescale

    def forward(self, pyramid: Tensor, h: Tensor) -> PyramidState:
        joined = join(self.resample(pyramid), h, self.skip_rescale)
        return joined, joined


class OutputStart(nn.Module):
    """p <- head(h): the output at the lowest resolution."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pyramid: None, h: Tensor) -> PyramidState:
        return self.head(h), h


class OutputSkip(nn.Module):
    """p <- upsample(p) + head(h): the output of lower resolutions, upsampled, plus that of this resolution."""

    def __init__(self, upsample: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.head = head

    def forward(self, pyramid: Tensor, h: Tensor) -> PyramidState:
        return self.upsample(pyramid) + self.head(h), h
