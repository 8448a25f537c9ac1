"""The networks of IDDPM and ADM: a U-Net, and its encoder as a classifier of noisy images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion_lab.network.adm_blocks import (
    Attention,
    AttentionPool,
    Downsample,
    Embedding,
    ScaleShiftBlock,
    Upsample,
    norm,
    zeroed,
)
from diffusion_lab.network.layers import Conv3x3
from diffusion_lab.network.sizes import Multipliers, check_input, check_resolutions
from diffusion_lab.network.stage import Stage, Unconditional
from diffusion_lab.ranges import Count, Probability, checked


class Encoder(nn.Module):
    """The half of the network down to the lowest resolution, and its middle; options as in `ADMUNet`."""

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        channels: Count,
        multipliers: Multipliers,
        blocks: Count,
        attention: tuple[Count, ...],
        dropout: Probability,
        heads: Count,
        head_channels: Count | None,
        scale_shift: bool,
        biggan: bool,
        new_attention_order: bool,
        checkpoint: bool,
        classes: Count | None = None,
        augmentation: Count | None = None,
    ) -> None:
        super().__init__()
        check_resolutions(image_size, len(multipliers), attention)
        self.in_channels, self.image_size = in_channels, image_size
        self.attends = lambda level: image_size // 2**level in attention

        def stage(source: int, width: int, attends: bool = False, resample: nn.Module | None = None) -> Stage:
            residual = ScaleShiftBlock(source, width, 4 * channels, dropout, scale_shift, resample)
            attend = Attention(width, heads, head_channels, new_attention_order) if attends else None
            return Stage(residual, attend, checkpoint)

        self.stage: Callable[..., Stage] = stage
        self.widths = [channels * multiplier for multiplier in multipliers]
        self.embedding = Embedding(channels, classes, augmentation)
        self.conv_in = Conv3x3(in_channels, self.widths[0])
        self.down, self.skips, width = nn.ModuleList(), [self.widths[0]], self.widths[0]
        for level, wider in enumerate(self.widths):
            if level:
                change = stage(width, width, resample=nn.AvgPool2d(2)) if biggan else Unconditional(Downsample(width))
                self.down.append(change)
                self.skips.append(width)
            for _ in range(blocks):
                self.down.append(stage(width, wider, self.attends(level)))
                self.skips.append(wider)
                width = wider
        self.middle = nn.ModuleList([stage(width, width, True), stage(width, width)])

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The middle's output, and the outputs of all stages before."""
        check_input(x, self.in_channels, len(self.widths))
        h = self.conv_in(x)
        kept = [h]
        for stage in self.down:
            h = stage(h, embedding)
            kept.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        return h, kept


class ADMUNet(Encoder):
    """U-Net of IDDPM and ADM: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    Sources: Nichol & Dhariwal 2021 (52,546,438 parameters for CIFAR-10 with learned variances); Dhariwal & Nichol 2021,
    Section 3; their programs.

    Args:
        image_size: used only to place the attention.
        channels, multipliers, blocks: level i has channels * multipliers[i] channels and `blocks` stages.
        attention: the resolutions with attention.
        heads, head_channels: number of heads, or channels of each head instead.
        scale_shift: scale and shift the second norm of a block by the noise level ("adaptive group normalisation").
        biggan: change the resolution inside residual blocks instead of by convolutions (ADM).
        new_attention_order: order of the rows of q, k and v in the weights, as in ADM's program (True) or IDDPM's.
        learned_range: twice as many output channels, for a learned range of variances (`Parameterization`).
        checkpoint: recompute stages in the backward pass: less memory, more time.
        classes: number of classes of the labels, and `classes` for the null label; None: no labels.
        augmentation: number of augmentation labels (`diffusion_lab.data.Augmentation`); None: no labels.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        out_channels: Count | None = None,
        channels: Count = 128,
        multipliers: Multipliers = (1, 2, 2, 2),
        blocks: Count = 3,
        attention: tuple[Count, ...] = (16, 8),
        dropout: Probability = 0.3,
        heads: Count = 4,
        head_channels: Count | None = None,
        scale_shift: bool = True,
        biggan: bool = False,
        new_attention_order: bool = False,
        learned_range: bool = False,
        checkpoint: bool = False,
        classes: Count | None = None,
        augmentation: Count | None = None,
    ) -> None:
        super().__init__(
            *(in_channels, image_size, channels, multipliers, blocks, attention, dropout, heads, head_channels),
            *(scale_shift, biggan, new_attention_order, checkpoint, classes, augmentation),
        )
        sources, width = list(self.skips), self.widths[-1]
        self.up = nn.ModuleList()
        for level, narrower in reversed(list(enumerate(self.widths))):
            for _ in range(blocks + 1):
                self.up.append(self.stage(width + sources.pop(), narrower, self.attends(level)))
                width = narrower
            if level:
                double = nn.Upsample(scale_factor=2.0)
                change = self.stage(width, width, resample=double) if biggan else Unconditional(Upsample(width))
                self.up.append(change)
        out = (out_channels or in_channels) * (2 if learned_range else 1)
        self.conv_out = nn.Sequential(norm(width), nn.SiLU(), zeroed(Conv3x3(width, out)))
        self.joins = [isinstance(one, Stage) and isinstance(one.residual.resample, nn.Identity) for one in self.up]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        embedding = self.embedding(t, label, augmentation)
        h, kept = self.encode(x, embedding)
        for stage, joins in zip(self.up, self.joins, strict=True):
            h = stage(torch.cat([h, kept.pop()], dim=1) if joins else h, embedding)
        return self.conv_out(h)


class NoisyClassifier(Encoder):
    """ADM's classifier of noisy images: x (B, in_channels, H, W) and t (B,) -> logits (B, outputs).

    Source: Dhariwal & Nichol 2021, Section 4.1: the encoder of the U-Net, with attention pooling.  Arguments are those
    of `ADMUNet`; `outputs` is the number of classes.  H and W are `image_size`.
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        outputs: Count | None,
        channels: Count = 128,
        multipliers: Multipliers = (1, 2, 3, 4),
        blocks: Count = 4,
        attention: tuple[Count, ...] = (32, 16, 8),
        dropout: Probability = 0.0,
        head_channels: Count = 64,
        scale_shift: bool = True,
        biggan: bool = True,
        new_attention_order: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(
            *(in_channels, image_size, channels, multipliers, blocks, attention, dropout, 1, head_channels),
            *(scale_shift, biggan, new_attention_order, checkpoint),
        )
        if outputs is None:
            raise ValueError("NoisyClassifier: outputs=None must be the number of classes of the data")
        width, size = self.widths[-1], image_size // 2 ** (len(multipliers) - 1)
        self.pool = nn.Sequential(norm(width), nn.SiLU(), AttentionPool(size, width, head_channels, outputs))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, _ = self.encode(x, self.embedding(t))
        return self.pool(h)
