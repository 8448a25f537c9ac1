"""The two blocks of a U-Net: residual convolutions told the noise level, and self-attention over pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.layers import conv1x1, conv3x3, group_norm, linear


class ResidualBlock(nn.Module):
    """Two normalised convolutions around a shift by the noise level, added to the input.

    h = conv1(silu(norm1(x))) + shift(e),   y = shortcut(x) + conv2(dropout(silu(norm2(h))))

    (Ho et al. 2020, appendix B.) `e` is the output of `TimeEmbedding`, which ends in a silu. `conv2` starts
    as almost zero, so that the block starts as its shortcut: the identity, or, where the width changes, a 1x1
    convolution of variance scale `pointwise_scale`.
    Shapes: x (B, in_channels, H, W), e (B, embedding) -> (B, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        groups: int = 32,
        dropout: float = 0.0,
        pointwise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.shift = linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, scale=0.0)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv1x1(in_channels, out_channels, pointwise_scale)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.shift(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class AttentionBlock(nn.Module):
    """Self-attention among all pixels, added to the input (Vaswani et al. 2017, eq. 1).

    q, k, v = split(W norm(x)),   y = x + out(softmax(q k^T / sqrt(d)) v),   d = channels / heads

    The maps are linear over channels, pixels as a sequence: in channels_last memory no reshape below copies.
    `out` starts as almost zero, so that the block starts as the identity. Shape: (B, channels, H, W), kept.
    Raises ValueError where the channels do not divide into the heads.
    """

    def __init__(self, channels: int, groups: int = 32, heads: int = 1, pointwise_scale: float = 1.0) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"attention over {channels} channels: heads={heads} does not divide them")
        self.heads = heads
        self.norm = group_norm(channels, groups)
        # Three square maps in one: its fan average, (1 + 3) C / 2, is twice theirs, and so must its scale be.
        self.qkv = linear(channels, 3 * channels, 2 * pointwise_scale)
        self.out = linear(channels, channels, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])
