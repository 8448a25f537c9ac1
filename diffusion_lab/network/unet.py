"""The U-Net of DDPM."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from diffusion_lab.network.blocks import AttentionBlock, ResidualBlock
from diffusion_lab.network.embedding import TimeEmbedding
from diffusion_lab.network.layers import conv3x3, group_norm
from diffusion_lab.network.resample import Downsample, Upsample


class Stage(nn.Module):
    """A residual block, then attention or nothing; with `checkpoint`, computed again in the backward pass."""

    def __init__(self, residual: ResidualBlock, attention: AttentionBlock | None, checkpoint: bool) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpoint and self.training:
            return recompute(self.compute, x, embedding, use_reentrant=False)
        return self.compute(x, embedding)

    def compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))


class UNet(nn.Module):
    """Noise-conditional U-Net of DDPM: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    Level i has resolution image_size / 2^i and channels * multipliers[i] channels. On the way down it is
    entered by a downsampling (the top one by a convolution) and passes `blocks` stages. Each of these
    blocks + 1 outputs is kept, and concatenated to the input of one of the blocks + 1 stages on the way up,
    where the level is left by an upsampling (the top one by the head). Between the two stand a stage with
    attention and one without.
    Source: Ho et al. 2020, appendix B; official code, `unet2d16b2` (35,746,307 parameters for CIFAR-10).

    t: whatever number the caller conditions on (DDPM: the level index 0 ... 999), of any real type.
    image_size: only places the attention; every H and W divisible by 2^(levels - 1) will do.
    attention: the resolutions whose stages attend; up_attention: on the way up "every" one of these stages
        (Ho et al.), or the "last" of a level only (ScoreSDE's port: 35,218,947 parameters).
    pointwise_scale: variance scale with which q, k, v and the 1x1 shortcuts start (ScoreSDE's port: 0.1).
    checkpoint: compute the stages again in the backward pass, which takes less memory and more time.
    Raises ValueError where sizes do not fit together: those of the net at once, of an input in `forward`.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        out_channels: int | None = None,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        heads: int = 1,
        groups: int = 32,
        up_attention: Literal["every", "last"] = "every",
        pointwise_scale: float = 1.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_shape(multipliers, blocks, up_attention)
        check_resolutions(image_size, len(multipliers), attention)

        def stage(source: int, width: int, attends: bool) -> Stage:
            residual = ResidualBlock(source, width, 4 * channels, groups, dropout, pointwise_scale)
            attend = AttentionBlock(width, groups, heads, pointwise_scale) if attends else None
            return Stage(residual, attend, checkpoint)

        widths = [channels * multiplier for multiplier in multipliers]
        self.time = TimeEmbedding(channels, 4 * channels)
        self.enter = nn.ModuleList([conv3x3(in_channels, channels), *map(Downsample, widths[:-1])])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            over, under = [channels, *widths][level], [*widths, width][level + 1]
            attends = image_size // 2**level in attention
            self.down.append(nn.ModuleList(stage(w, width, attends) for w in [over] + [width] * (blocks - 1)))
            sources = [under + width] + [2 * width] * (blocks - 1) + [width + over]
            placed = [attends and up_attention == "every"] * blocks + [attends]
            self.up.insert(0, nn.ModuleList(map(stage, sources, [width] * (blocks + 1), placed)))
        self.middle = nn.ModuleList([stage(width, width, True), stage(width, width, False)])
        top = head(widths[0], out_channels or in_channels, groups)
        self.leave = nn.ModuleList([*map(Upsample, widths[:0:-1]), top])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.check_input(x)
        embedding = self.time(t)
        h, skips = x, []
        for enter, stages in zip(self.enter, self.down, strict=True):
            h = enter(h)
            skips.append(h)
            for stage in stages:
                h = stage(h, embedding)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for stages, leave in zip(self.up, self.leave, strict=True):
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
            h = leave(h)
        return h

    def check_input(self, x: Tensor) -> None:
        channels, divisor = self.enter[0].in_channels, 2 ** (len(self.down) - 1)
        if x.dim() != 4 or x.shape[1] != channels or any(n % divisor for n in x.shape[2:]):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: the network takes (batch, {channels}, height, width), "
                f"height and width divisible by {divisor}"
            )


def head(channels: int, out_channels: int, groups: int) -> nn.Sequential:
    """Norm, silu, and a convolution that starts as almost zero: the network starts by predicting nothing."""
    return nn.Sequential(group_norm(channels, groups), nn.SiLU(), conv3x3(channels, out_channels, scale=0.0))


def check_shape(multipliers: tuple[int, ...], blocks: int, up_attention: str) -> None:
    """Raise ValueError where the network would have no level, no block, or an unknown way up."""
    if not multipliers or min(multipliers) < 1 or blocks < 1:
        raise ValueError(
            f"multipliers={list(multipliers)}, blocks={blocks}: "
            f"give at least one multiplier, and each number at least 1"
        )
    if up_attention not in ("every", "last"):
        raise ValueError(f"up_attention={up_attention!r}: choose 'every' or 'last'")


def check_resolutions(image_size: int, levels: int, attention: tuple[int, ...]) -> None:
    """Raise ValueError where the image cannot be halved so often, or no level has a resolution asked for."""
    if image_size % 2 ** (levels - 1):
        raise ValueError(
            f"image_size={image_size} cannot be halved {levels - 1} times, as {levels} multipliers ask: "
            f"pad the images to a multiple of {2 ** (levels - 1)}, or give fewer multipliers"
        )
    sizes = [image_size // 2**level for level in range(levels)]
    if missing := sorted(set(attention) - set(sizes)):
        raise ValueError(
            f"attention={missing}: the network has no such resolution; at image_size={image_size} "
            f"with {levels} multipliers choose from {sizes}"
        )
