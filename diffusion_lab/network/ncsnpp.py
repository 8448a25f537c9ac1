"""NCSN++ and DDPM++, the U-Nets of ScoreSDE."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from diffusion_lab.network.block_config import INPUTS, OUTPUTS, BlockConfig
from diffusion_lab.network.embedding import FourierWaves, LabelEmbedding, TimeEmbedding, embedded
from diffusion_lab.network.layers import conv3x3
from diffusion_lab.network.sizes import Multipliers, check_input, check_resolutions
from diffusion_lab.ranges import Count, NonNegative, Positive, Probability, checked


class NCSNpp(nn.Module):
    """Noise-conditional U-Net of ScoreSDE: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    Encoder and decoder are those of `UNet` with up_attention="last", with these changes: the resolution changes inside
    residual blocks, with a low-pass filter; sums of two terms are divided by sqrt(2); the image is an input at every
    resolution (input pyramid); and the output may be a sum over all resolutions (output pyramid).
    Source: Song et al. 2021, appendix H; official code, `ncsnpp`. The defaults are NCSN++ for CIFAR-10 (62,758,915
    parameters); fir=False, progressive_input="none", embedding="positional" give DDPM++ (61,804,419).

    t: c_noise, which is log sigma for embedding="fourier", and 999 t or a level for "positional".
    Unlike the official network this one does not take the logarithm, rescale x to [-1, 1] or divide by sigma.
    image_size: used only to place the attention; H and W may be any multiples of 2^(levels - 1).
    attention: the resolutions with attention, in the decoder only in the last block of a level.
    groups: maximum number of groups of a norm, each of at least 4 channels.
    resblock_type: "biggan", or "ddpm": the resolution changes between the blocks, by a convolution if resamp_with_conv.
    fir: filter with [1, 3, 3, 1] where the resolution changes; else average pooling and nearest-neighbour upsampling.
    skip_rescale: divide every sum of a block's input and output, and of a residual pyramid, by sqrt(2).
    progressive_input: additional input to the encoder at each resolution: "none", the downsampled image ("input_skip",
        added or concatenated by progressive_combine), or a running sum of features ("residual").
    progressive: the output is computed from the last features ("none"), is the sum of the outputs of each resolution
        ("output_skip"), or is computed from a running sum of features ("residual"; needs at least two levels).
    fourier_scale: standard deviation of the random frequencies of the "fourier" embedding.
    conditional: False for a network without noise conditioning.
    init_scale: initial variance scale of each block's last layer and of the output layer; 0: almost zero.
    checkpoint: recompute the stages in the backward pass (gradient checkpointing): less memory, more time.
    classes: number of classes of the labels (B,), 0 ... classes - 1, and `classes` for the null label; None: no labels.
    label_embedding: "table", a vector per class, or "one_hot" (EDM): a linear map, without a vector of the null label.
    augmentation: number of augmentation labels (B, augmentation) (`diffusion_lab.data.Augmentation`); None: no labels.
    Raises ValueError for sizes that do not fit together: of the network at once, of an input in `forward`.
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        out_channels: Count | None = None,
        channels: Annotated[int, Ge(4)] = 128,
        multipliers: Multipliers = (1, 2, 2, 2),
        blocks: Count = 4,
        attention: tuple[Count, ...] = (16,),
        dropout: Probability = 0.1,
        groups: Count = 32,
        resblock_type: Literal["biggan", "ddpm"] = "biggan",
        fir: bool = True,
        resamp_with_conv: bool = True,
        skip_rescale: bool = True,
        progressive: Literal["none", "output_skip", "residual"] = "none",
        progressive_input: Literal["none", "input_skip", "residual"] = "residual",
        progressive_combine: Literal["sum", "cat"] = "sum",
        embedding: Literal["fourier", "positional"] = "fourier",
        fourier_scale: Positive = 16.0,
        conditional: bool = True,
        init_scale: NonNegative = 0.0,
        checkpoint: bool = False,
        classes: Count | None = None,
        label_embedding: Literal["table", "one_hot"] = "table",
        augmentation: Count | None = None,
    ) -> None:
        super().__init__()
        check_resolutions(image_size, len(multipliers), attention)
        if augmentation and not conditional:
            raise ValueError("augmentation labels are embedded with the noise level: set network.conditional=true")
        if progressive == "residual" and len(multipliers) < 2:
            raise ValueError("progressive='residual' sums over resolutions: give at least two multipliers")
        self.resblock_type, self.fir, self.embedding, self.conditional = resblock_type, fir, embedding, conditional
        self.progressive, self.progressive_input, self.image_size = progressive, progressive_input, image_size
        config = BlockConfig(
            in_channels,
            out_channels or in_channels,
            4 * channels if conditional or classes else None,
            dropout,
            groups,
            resblock_type,
            fir,
            resamp_with_conv,
            skip_rescale,
            progressive_combine,
            init_scale,
            checkpoint,
        )
        waves = FourierWaves(2 * channels, fourier_scale) if embedding == "fourier" else None
        size = 2 * channels if embedding == "fourier" else channels
        one_hot = label_embedding == "one_hot"
        self.time = TimeEmbedding(size, 4 * channels, waves, classes, one_hot, augmentation) if conditional else None
        self.labels = LabelEmbedding(classes, 4 * channels) if classes and not conditional else None
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [image_size // 2**level in attention for level in range(len(widths))]
        skips = self.build_down(config, channels, widths, blocks, attends)
        self.middle = nn.ModuleList([config.stage(widths[-1], widths[-1], True), config.stage(widths[-1], widths[-1])])
        self.build_up(config, skips, widths, blocks, attends)

    def build_down(
        self, config: BlockConfig, channels: int, widths: list[int], blocks: int, attends: list[bool]
    ) -> list[int]:
        """Build the encoder; return the channels of each skip connection to the decoder."""
        self.conv_in = conv3x3(config.in_channels, channels)
        self.downsample = nn.ModuleList()
        self.input_pyramid = nn.ModuleList()
        self.down = nn.ModuleList()
        wider = 2 if self.progressive_input == "input_skip" and config.progressive_combine == "cat" else 1
        skips, pyramid = [channels], config.in_channels
        for level, width in enumerate(widths):
            if level > 0:
                above = widths[level - 1]
                self.downsample.append(config.change(above, config.resampling.halve, config.resampling.downsample))
                self.input_pyramid.append(INPUTS[self.progressive_input](config, pyramid, above))
                skips.append(wider * above)
                pyramid = above
            sources = [skips[-1]] + [width] * (blocks - 1)
            self.down.append(nn.ModuleList(config.stage(source, width, attends[level]) for source in sources))
            skips += [width] * blocks
        return skips

    def build_up(
        self, config: BlockConfig, skips: list[int], widths: list[int], blocks: int, attends: list[bool]
    ) -> None:
        """Build the decoder."""
        self.up, self.output_pyramid, self.upsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = None
        for level, width in reversed(list(enumerate(widths))):
            sources = [below or width] + [width] * blocks
            last = [False] * blocks + [attends[level]]
            stages = (config.stage(h + skips.pop(), width, attend) for h, attend in zip(sources, last, strict=True))
            self.up.append(nn.ModuleList(stages))
            self.output_pyramid.append(OUTPUTS[self.progressive](config, below, width))
            if level > 0:
                self.upsample.append(config.change(width, config.resampling.double, config.resampling.upsample))
            below = width
        self.conv_out = None if self.progressive == "output_skip" else config.output_head(widths[0])

    def embed(self, t: Tensor, label: Tensor | None, augmentation: Tensor | None) -> Tensor | None:
        """The embedding (B, 4 channels) of noise level and labels; None for a network without any."""
        if self.conditional:
            return self.time(t, label, augmentation)
        of_label = embedded(self.labels, label)
        return None if of_label is None else F.silu(of_label)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        check_input(x, self.conv_in.in_channels, len(self.down))
        embedding = self.embed(t, label, augmentation)
        h, pyramid, skips = self.conv_in(x), x, []
        for level, stages in enumerate(self.down):
            if level > 0:
                h = self.downsample[level - 1](h, embedding)
                pyramid, h = self.input_pyramid[level - 1](pyramid, h)
            skips.append(h)
            for stage in stages:
                h = stage(h, embedding)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        pyramid = None
        for level, stages in enumerate(self.up):
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
            pyramid, h = self.output_pyramid[level](pyramid, h)
            if level < len(self.upsample):
                h = self.upsample[level](h, embedding)
        return pyramid if self.conv_out is None else self.conv_out(h)
