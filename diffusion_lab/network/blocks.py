"""The two blocks of a U-Net: residual convolutions told the noise level, and self-attention over pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.layers import Dropout, conv1x1, conv3x3, group_norm, linear


def join(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, or where `rescale` (x + h) / sqrt(2): two parts of equal variance join into one of that variance."""
    return (x + h).mul_(0.5**0.5) if rescale else x + h


def head(channels: int, out_channels: int, groups: int, least: int | None = None, scale: float = 0.0) -> nn.Sequential:
    """Norm, silu, and a convolution that, of scale 0, starts as almost zero: the network first predicts nothing."""
    return nn.Sequential(group_norm(channels, groups, least), nn.SiLU(), conv3x3(channels, out_channels, scale))


class ResidualBlock(nn.Module):
    """Two normalised convolutions around a shift by the noise level, added to the input.

    h = conv1(R silu(norm1(x))) + shift(e),   y = shortcut(R x) + conv2(dropout(silu(norm2(h))))

    (Ho et al. 2020, appendix B.) `e` is the output of `TimeEmbedding`, which ends in a silu. `conv2` starts
    as almost zero, so that the block starts as its shortcut: the identity, or, where the width or the resolution
    changes, a 1x1 convolution of variance scale `pointwise_scale`.
    Shapes: x (B, in_channels, H, W), e (B, embedding) -> (B, out_channels, H, W).

    NCSN++ (Song et al. 2021, appendix H, after Brock et al. 2019) adds the rest: `resample`, R above, which changes
    the resolution inside of the block; `skip_rescale`, y / sqrt(2) in place of y; `init_scale` of conv2; `least`
    channels in each group of the norms; and no shift where `embedding` is None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None,
        groups: int = 32,
        dropout: float = 0.0,
        pointwise_scale: float = 1.0,
        init_scale: float = 0.0,
        least: int | None = None,
        skip_rescale: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups, least)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.shift = None if embedding is None else linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels, groups, least)
        self.dropout = Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, init_scale)
        same = in_channels == out_channels and resample is None
        self.shortcut = nn.Identity() if same else conv1x1(in_channels, out_channels, pointwise_scale)
        self.resample = resample or nn.Identity()
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        if self.shift is not None:
            h = h + self.shift(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return join(self.shortcut(self.resample(x)), h, self.skip_rescale)


class AttentionBlock(nn.Module):
    """Self-attention among all pixels, added to the input (Vaswani et al. 2017, eq. 1).

    q, k, v = split(W norm(x)),   y = x + out(softmax(q k^T / sqrt(d)) v),   d = channels / heads

    The maps are linear over channels, pixels as a sequence: in channels_last memory no reshape below copies.
    `out` starts with variance scale `init_scale`: 0, almost zero, so that the block starts as the identity.
    `skip_rescale` and `least` as in `ResidualBlock`. Shape: (B, channels, H, W), kept.
    Raises ValueError where the channels do not divide into the heads.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        heads: int = 1,
        pointwise_scale: float = 1.0,
        init_scale: float = 0.0,
        least: int | None = None,
        skip_rescale: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"attention over {channels} channels: heads={heads} does not divide them")
        self.heads = heads
        self.norm = group_norm(channels, groups, least)
        # Three square maps in one: its fan average, (1 + 3) C / 2, is twice theirs, and so must its scale be.
        self.qkv = linear(channels, 3 * channels, 2 * pointwise_scale)
        self.out = linear(channels, channels, init_scale)
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return join(x, self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:]), self.skip_rescale)
