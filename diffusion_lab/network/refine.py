"""The blocks of a RefineNet: residual blocks that downsample or dilate, and refinement blocks."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.layers import Conv3x3
from diffusion_lab.network.normalization import ConditionalInstanceNormPlus, InstanceNormPlus, NoNorm, Position

POOLS = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


def normalise(channels: int, levels: int | None) -> nn.Module:
    """InstanceNorm++, conditioned on the noise level if `levels` is given."""
    return ConditionalInstanceNormPlus(channels, levels) if levels else InstanceNormPlus(channels)


def normalise_if_conditional(channels: int, levels: int | None) -> nn.Module:
    """Conditional InstanceNorm++ if `levels` is given, else no norm, as in the refinement blocks of NCSNv2."""
    return ConditionalInstanceNormPlus(channels, levels) if levels else NoNorm()


class DilatedBlock(nn.Module):
    """Residual block with two normalised convolutions (Song & Ermon 2019, appendix A).

    h = conv2(elu(norm2(conv1(elu(norm1(x)))))),   y = x + h

    In the first block of a stage conv2 changes the width, and the block either downsamples or dilates:
    dilation = 1: y = conv1x1(mean2x2(x)) + mean2x2(h);  dilation > 1: y = conv3x3(x) + h, at the same resolution.
    Shapes: (B, in_channels, H, W) -> (B, out_channels, H, W), or half of H and W.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int = 1, levels: int | None = None, first: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = normalise(in_channels, levels)
        self.conv1 = Conv3x3(in_channels, in_channels, dilation)
        self.norm2 = normalise(in_channels, levels)
        self.conv2 = Conv3x3(in_channels, out_channels, dilation)
        self.halves = first and dilation == 1
        self.shortcut = nn.Identity()
        if first:
            widths = in_channels, out_channels
            self.shortcut = nn.Conv2d(*widths, 1) if self.halves else Conv3x3(*widths, dilation)

    def forward(self, x: Tensor, position: Position | None) -> Tensor:
        # In place: the output of a norm is not needed elsewhere.
        h = self.conv1(F.elu(self.norm1(x, position), inplace=True))
        h = self.conv2(F.elu(self.norm2(h, position), inplace=True))
        if self.halves:
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        return self.shortcut(x) + h


class PreActivated(nn.Module):
    """conv(elu(norm(x))), a convolution without bias; shape (B, channels, H, W), kept."""

    def __init__(self, channels: int, levels: int | None) -> None:
        super().__init__()
        self.norm = normalise_if_conditional(channels, levels)
        self.conv = Conv3x3(channels, channels, bias=False)

    def forward(self, x: Tensor, position: Position | None) -> Tensor:
        return self.conv(F.elu(self.norm(x, position)))


class ResidualUnits(nn.Module):
    """`count` times x <- x + conv(elu(conv(elu(x)))), with a norm before each elu if conditional; shape kept."""

    def __init__(self, channels: int, count: int, levels: int | None) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.ModuleList(PreActivated(channels, levels) for _ in range(2)) for _ in range(count)
        )

    def forward(self, x: Tensor, position: Position | None) -> Tensor:
        for first, second in self.units:
            x = x + second(first(x, position), position)
        return x


class Fusion(nn.Module):
    """Sum of convolved inputs, resampled to the resolution of the first: bilinear with aligned corners.

    Shapes: (B, in_channels[i], H_i, W_i) -> (B, out_channels, H_0, W_0).
    """

    def __init__(self, in_channels: list[int], out_channels: int, levels: int | None) -> None:
        super().__init__()
        self.norms = nn.ModuleList(normalise_if_conditional(width, levels) for width in in_channels)
        self.convs = nn.ModuleList(Conv3x3(width, out_channels) for width in in_channels)

    def forward(self, inputs: list[Tensor], position: Position | None) -> Tensor:
        size = inputs[0].shape[2:]
        layers = zip(self.norms, self.convs, inputs, strict=True)
        first, *rest = [conv(norm(x, position)) for norm, conv, x in layers]
        for h in rest:
            same = h.shape[2:] == size
            first = first + (h if same else F.interpolate(h, size, mode="bilinear", align_corners=True))
        return first


class ChainedPooling(nn.Module):
    """The sum of a chain of 5x5 poolings and convolutions (Lin et al. 2017); shape (B, channels, H, W), kept.

    p_0 = elu(x),   p_i = conv_i(pool(norm_i(p_{i-1}))),   y = p_0 + p_1 + p_2
    """

    def __init__(self, channels: int, levels: int | None, pool: Literal["average", "max"]) -> None:
        super().__init__()
        self.pool = POOLS[pool](5, stride=1, padding=2)
        self.norms = nn.ModuleList(normalise_if_conditional(channels, levels) for _ in range(2))
        self.convs = nn.ModuleList(Conv3x3(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, position: Position | None) -> Tensor:
        path = total = F.elu(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(self.pool(norm(path, position)))
            total = total + path
        return total


class RefineBlock(nn.Module):
    """Residual units on each input, fusion, chained pooling, residual units (Lin et al. 2017, "RefineNet", figure 3).

    The inputs are the encoder's output at a stage and, except at the deepest stage, the output of the previous block.
    Shapes: (B, in_channels[i], H_i, W_i), for one or two inputs -> (B, out_channels, H_0, W_0).
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        levels: int | None,
        pool: Literal["average", "max"],
        units: int = 1,
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ResidualUnits(width, 2, levels) for width in in_channels)
        self.fuse = Fusion(in_channels, out_channels, levels) if len(in_channels) > 1 else None
        self.pool = ChainedPooling(out_channels, levels, pool)
        self.units = ResidualUnits(out_channels, units, levels)

    def forward(self, inputs: list[Tensor], position: Position | None) -> Tensor:
        adapted = [adapt(x, position) for adapt, x in zip(self.adapt, inputs, strict=True)]
        h = self.fuse(adapted, position) if self.fuse else adapted[0]
        return self.units(self.pool(h, position), position)
