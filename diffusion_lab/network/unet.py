"""The U-Net of DDPM (Ho et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_lab.network.blocks import AttentionBlock, ResidualBlock, head
from diffusion_lab.network.embedding import TimeEmbedding
from diffusion_lab.network.layers import conv3x3
from diffusion_lab.network.resample import Downsample, Upsample
from diffusion_lab.network.sizes import Multipliers, check_input, check_resolutions
from diffusion_lab.network.stage import Stage
from diffusion_lab.ranges import Count, NonNegative, Probability, checked


class UNet(nn.Module):
    """Noise-conditional U-Net of DDPM: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    Level i has resolution image_size / 2^i and channels * multipliers[i] channels. In the encoder it starts with a
    downsampling layer (level 0: a convolution), followed by `blocks` stages. Each of these blocks + 1 outputs is
    concatenated to the input of one of the blocks + 1 stages of the same level in the decoder, which ends with an
    upsampling layer (level 0: the output head). In the middle are a stage with attention and one without.
    Source: Ho et al. 2020, appendix B; official code, `unet2d16b2` (35,746,307 parameters for CIFAR-10).

    t: c_noise (DDPM: the level index 0 ... 999), of any real dtype.
    image_size: used only to place the attention; H and W may be any multiples of 2^(levels - 1).
    attention: the resolutions with attention; up_attention: in the decoder in "every" stage of these (Ho et al.), or
        only in the "last" of a level (ScoreSDE's port: 35,218,947 parameters).
    pointwise_scale: initial variance scale of q, k, v and the 1x1 shortcuts (ScoreSDE's port: 0.1).
    checkpoint: recompute the stages in the backward pass (gradient checkpointing): less memory, more time.
    classes: number of classes of the labels (B,), 0 ... classes - 1, and `classes` for the null label; None: no labels.
    augmentation: number of augmentation labels (B, augmentation) (`diffusion_lab.data.Augmentation`); None: no labels.
    Raises ValueError for sizes that do not fit together: of the network at once, of an input in `forward`.
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        out_channels: Count | None = None,
        channels: Count = 128,
        multipliers: Multipliers = (1, 2, 2, 2),
        blocks: Count = 2,
        attention: tuple[Count, ...] = (16,),
        dropout: Probability = 0.1,
        heads: Count = 1,
        groups: Count = 32,
        up_attention: Literal["every", "last"] = "every",
        pointwise_scale: NonNegative = 1.0,
        checkpoint: bool = False,
        classes: Count | None = None,
        augmentation: Count | None = None,
    ) -> None:
        super().__init__()
        check_resolutions(image_size, len(multipliers), attention)

        def stage(source: int, width: int, attends: bool) -> Stage:
            residual = ResidualBlock(source, width, 4 * channels, groups, dropout, pointwise_scale)
            attend = AttentionBlock(width, groups, heads, pointwise_scale) if attends else None
            return Stage(residual, attend, checkpoint)

        widths = [channels * multiplier for multiplier in multipliers]
        self.time = TimeEmbedding(channels, 4 * channels, classes=classes, augmentation=augmentation)
        self.conv_in = conv3x3(in_channels, channels)
        self.downsample = nn.ModuleList(map(Downsample, widths[:-1]))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            over, under = [channels, *widths][level], [*widths, width][level + 1]
            attends = image_size // 2**level in attention
            self.down.append(nn.ModuleList(stage(w, width, attends) for w in [over] + [width] * (blocks - 1)))
            sources = [under + width] + [2 * width] * (blocks - 1) + [width + over]
            placed = [attends and up_attention == "every"] * blocks + [attends]
            self.up.insert(0, nn.ModuleList(map(stage, sources, [width] * (blocks + 1), placed)))
        self.middle = nn.ModuleList([stage(width, width, True), stage(width, width, False)])
        self.upsample = nn.ModuleList(map(Upsample, widths[:0:-1]))
        self.conv_out = head(widths[0], out_channels or in_channels, groups)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        check_input(x, self.conv_in.in_channels, len(self.down))
        embedding = self.time(t, label, augmentation)
        h, skips = x, []
        for change, stages in zip([self.conv_in, *self.downsample], self.down, strict=True):
            h = change(h)
            skips.append(h)
            for stage in stages:
                h = stage(h, embedding)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for stages, change in zip(self.up, [*self.upsample, self.conv_out], strict=True):
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
            h = change(h)
        return h
