"""The two blocks of a U-Net: residual blocks conditioned on the noise level, and self-attention over pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.layers import Dropout, conv1x1, conv3x3, group_norm, linear
from diffusion_lab.network.norm_silu import GroupNormSilu


def join(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, or (x + h) / sqrt(2) with `rescale`, which keeps the variance of two terms of equal variance."""
    return (x + h).mul_(0.5**0.5) if rescale else x + h


def head(
    channels: int, out_channels: int, groups: int, min_group_size: int | None = None, scale: float = 0.0
) -> nn.Sequential:
    """Norm, silu and convolution; with scale 0 the initial output is almost zero."""
    norm = group_norm(channels, groups, min_group_size)
    return nn.Sequential(norm, nn.SiLU(), conv3x3(channels, out_channels, scale))


class ResidualBlock(nn.Module):
    """Residual block with two convolutions, conditioned on the noise level by a shift between them.

    h = conv1(R silu(norm1(x))) + shift(e),   y = shortcut(R x) + conv2(dropout(silu(norm2(h))))

    (Ho et al. 2020, appendix B.) `e` is the output of `TimeEmbedding`, which ends in a silu. `conv2` is initialised
    almost to zero, so that the block initially equals its shortcut: the identity, or a 1x1 convolution of variance
    scale `pointwise_scale` if width or resolution change.
    Shapes: x (B, in_channels, H, W), e (B, embedding) -> (B, out_channels, H, W).

    NCSN++ (Song et al. 2021, appendix H, after Brock et al. 2019) adds `resample`, the change of resolution R inside
    the block; `skip_rescale`, y / sqrt(2) instead of y; `init_scale` of conv2; and `min_group_size`, the minimum number
    of channels per group of the norms. With embedding=None there is no shift.
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
        min_group_size: int | None = None,
        skip_rescale: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups, min_group_size, GroupNormSilu)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.shift = None if embedding is None else linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels, groups, min_group_size, GroupNormSilu)
        self.dropout = Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, init_scale)
        same = in_channels == out_channels and resample is None
        self.shortcut = nn.Identity() if same else conv1x1(in_channels, out_channels, pointwise_scale)
        self.resample = resample or nn.Identity()
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.conv1(self.resample(self.norm1(x)))
        if self.shift is not None:
            h = h + self.shift(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(self.norm2(h)))
        return join(self.shortcut(self.resample(x)), h, self.skip_rescale)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to the input (Vaswani et al. 2017, eq. 1).

    q, k, v = split(W norm(x)),   y = x + out(softmax(q k^T / sqrt(d)) v),   d = channels / heads

    The layers are linear over channels, with pixels as a sequence: in channels_last format no reshape below copies.
    `out` is initialised with variance scale `init_scale`; with 0 (almost zero) the block initially is the identity.
    `skip_rescale` and `min_group_size` as in `ResidualBlock`. Shape: (B, channels, H, W), kept.
    Raises ValueError unless `heads` divides `channels`.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        heads: int = 1,
        pointwise_scale: float = 1.0,
        init_scale: float = 0.0,
        min_group_size: int | None = None,
        skip_rescale: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"attention over {channels} channels: heads={heads} does not divide them")
        self.heads = heads
        self.norm = group_norm(channels, groups, min_group_size)
        # Three square matrices in one: its fan average, (1 + 3) C / 2, is twice theirs, hence twice the scale.
        self.qkv = linear(channels, 3 * channels, 2 * pointwise_scale)
        self.out = linear(channels, channels, init_scale)
        self.skip_rescale = skip_rescale

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, (B, heads, pixels, channels of a head)."""
        return qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(self.norm(x).flatten(2).transpose(1, 2)))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return join(x, self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:]), self.skip_rescale)
