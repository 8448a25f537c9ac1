"""The blocks of the networks of IDDPM and ADM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.blocks import AttentionBlock
from diffusion_lab.network.embedding import AugmentationEmbedding, LabelEmbedding, augmented, embedded
from diffusion_lab.network.layers import Conv3x3, Dropout
from diffusion_lab.network.norm_silu import GroupNormSilu


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with weight and bias 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def norm(channels: int, kind: type[nn.GroupNorm] = nn.GroupNorm) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or as many as divide few channels."""
    return kind(math.gcd(32, channels), channels)


class Embedding(nn.Module):
    """Embedding silu(W_2 silu(W_1 waves(t)) + label) of the noise level; Nichol & Dhariwal 2021, official code.

    waves(t) = [cos(w_0 t) ..., sin(w_0 t) ...], w_k = 10000^(-k/h), h = channels/2.
    The embedding of `augmentation` augmentation labels is added to waves(t) (Karras et al. 2022, official code).
    Shapes: (B,), (B,), (B, augmentation) -> (B, 4 channels).
    """

    def __init__(self, channels: int, classes: int | None = None, augmentation: int | None = None) -> None:
        super().__init__()
        self.half = channels // 2
        self.dense1, self.dense2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)
        self.labels = None if classes is None else LabelEmbedding(classes, 4 * channels)
        self.augmentation = augmentation and AugmentationEmbedding(augmentation, channels, scale=0.0)

    def forward(self, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        precision = torch.promote_types(self.dense1.weight.dtype, torch.float32)  # bfloat16 merges neighbouring levels
        index = torch.arange(self.half, dtype=precision, device=t.device)
        angles = t.to(precision)[:, None] * torch.exp(index * (-math.log(10000.0) / self.half))
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.dense1.weight.dtype)
        features, of_label = augmented(waves, self.augmentation, augmentation), embedded(self.labels, label)
        h = self.dense2(F.silu(self.dense1(features)))
        return F.silu(h if of_label is None else h + of_label)


class ScaleShiftBlock(nn.Module):
    """A residual block whose second norm is scaled and shifted by the noise level; Dhariwal & Nichol 2021, Section 3.

        y = shortcut(R x) + conv2(dropout(silu(norm2(conv1(R silu(norm1(x)))) (1 + scale(e)) + shift(e))))

    R is an optional change of resolution (BigGAN's).  With scale_shift=False the shift is added before norm2, as in
    DDPM.  Shapes: x (B, in_channels, H, W), e (B, embedding) -> (B, out_channels, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        scale_shift: bool = True,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(in_channels, GroupNormSilu), Conv3x3(in_channels, out_channels)
        self.modulation = nn.Linear(embedding, 2 * out_channels if scale_shift else out_channels)
        self.norm2, self.dropout = norm(out_channels), Dropout(dropout)
        self.conv2 = zeroed(Conv3x3(out_channels, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.resample, self.scale_shift = resample or nn.Identity(), scale_shift

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resample(self.norm1(x)))
        modulation = self.modulation(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        return self.shortcut(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))


class Attention(AttentionBlock):
    """`AttentionBlock` with the norm and the initialisation of ADM; heads of `head_channels`, or `heads` of them.

    The rows of qkv are grouped by q, k, v in the new order, and by heads in the old one.
    """

    def __init__(self, channels: int, heads: int, head_channels: int | None, new_order: bool) -> None:
        if head_channels and channels % head_channels:
            raise ValueError(f"head_channels={head_channels} does not divide {channels} channels with attention")
        super().__init__(channels, math.gcd(32, channels), channels // head_channels if head_channels else heads)
        self.norm, self.out = norm(channels), zeroed(self.out)
        self.qkv, self.new_order = nn.Linear(channels, 3 * channels), new_order

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, (B, heads, pixels, channels of a head)."""
        if self.new_order:
            return super().split(qkv)
        return qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind()


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(Conv3x3):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class AttentionPool(nn.Module):
    """Attention of the mean over all pixels to the pixels (Radford et al. 2021, CLIP): (B, C, H, W) -> (B, out).

    Args:
        size: H and W.
    """

    def __init__(self, size: int, channels: int, head_channels: int, out: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.position = nn.Parameter(torch.randn(size**2 + 1, channels) / channels**0.5)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        pixels = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.position
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1))
