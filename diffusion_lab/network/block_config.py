"""Settings shared by all blocks of NCSN++, and tables of the blocks for each option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from diffusion_lab.network.blocks import AttentionBlock, ResidualBlock, head
from diffusion_lab.network.pyramid import Bypass, InputSkip, OutputSkip, OutputStart, Residual
from diffusion_lab.network.resample import FIR, MEAN, Resampling
from diffusion_lab.network.stage import Stage, Unconditional

Widths = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class BlockConfig:
    """Block settings, named as in `NCSNpp`; `embedding_width` is None for an unconditional network."""

    in_channels: int
    out_channels: int
    embedding_width: int | None
    dropout: float
    groups: int
    resblock_type: str
    fir: bool
    resamp_with_conv: bool
    skip_rescale: bool
    progressive_combine: str
    init_scale: float
    checkpoint: bool

    # Initial variance scale of ScoreSDE's 1x1 layers: attention, and shortcuts of the DDPM block.
    small = 0.1
    min_group_size = 4

    @property
    def resampling(self) -> Resampling:
        return FIR if self.fir else MEAN

    def stage(self, source: int, width: int, attends: bool = False, resample: nn.Module | None = None) -> Stage:
        """A residual block from `source` to `width` channels, followed by attention if `attends`."""
        norm = {"groups": self.groups, "min_group_size": self.min_group_size}
        last = {"init_scale": self.init_scale, "skip_rescale": self.skip_rescale}
        shortcut = {"biggan": 1.0, "ddpm": self.small}[self.resblock_type]
        residual = ResidualBlock(
            source,
            width,
            self.embedding_width,
            dropout=self.dropout,
            pointwise_scale=shortcut,
            resample=resample,
            **norm,
            **last,
        )
        attention = AttentionBlock(width, pointwise_scale=self.small, **norm, **last) if attends else None
        return Stage(residual, attention, self.checkpoint)

    def change(self, width: int, resample: Callable[[], nn.Module], convolve: Widths) -> nn.Module:
        """A change of resolution: inside a residual block (BigGAN), or with or without a convolution (DDPM)."""
        if self.resblock_type == "biggan":
            return self.stage(width, width, resample=resample())
        return Unconditional(convolve(width, width) if self.resamp_with_conv else resample())

    def head(self, width: int, out_channels: int, scale: float) -> nn.Sequential:
        return head(width, out_channels, self.groups, self.min_group_size, scale)

    def output_head(self, width: int) -> nn.Sequential:
        """The layers that compute the output of one resolution."""
        return self.head(width, self.out_channels, self.init_scale)


def input_skip(config: BlockConfig, before: int, width: int) -> nn.Module:
    return InputSkip(config.resampling.halve(), config.in_channels, width, config.progressive_combine == "cat")


def input_residual(config: BlockConfig, before: int, width: int) -> nn.Module:
    return Residual(config.resampling.downsample(before, width), config.skip_rescale)


def output_skip(config: BlockConfig, below: int | None, width: int) -> nn.Module:
    head = config.output_head(width)
    return OutputSkip(config.resampling.double(), head) if below else OutputStart(head)


def output_residual(config: BlockConfig, below: int | None, width: int) -> nn.Module:
    if below is None:
        return OutputStart(config.head(width, width, scale=1.0))
    return Residual(config.resampling.upsample(below, width), config.skip_rescale)


def bypass(config: BlockConfig, before: int | None, width: int) -> nn.Module:
    return Bypass()


INPUTS = {"none": bypass, "input_skip": input_skip, "residual": input_residual}
OUTPUTS = {"none": bypass, "output_skip": output_skip, "residual": output_residual}
