"""The RefineNets of NCSN and NCSNv2 (Song & Ermon 2019 and 2020)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from diffusion_lab.network.embedding import check_label
from diffusion_lab.network.layers import Conv3x3
from diffusion_lab.network.normalization import LabelledNorm, Position
from diffusion_lab.network.refine import DilatedBlock, RefineBlock, normalise
from diffusion_lab.network.sizes import Multipliers, check_input
from diffusion_lab.ranges import Count, checked


class RefineNet(nn.Module):
    """Network of NCSN and NCSNv2: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    Stage i of the encoder has channels * multipliers[i] channels and `blocks` residual blocks. The first stage has the
    resolution of the image; each later one halves it, or, if its dilation is above 1, keeps it and enlarges the
    receptive field by dilated convolutions. The decoder has a refinement block per stage, which merges the output of
    the stage with that of the previous block.
    Sources: Song & Ermon 2019, appendix A and official code `CondRefineNetDilated` (30,117,635 parameters at CIFAR-10);
    Song & Ermon 2020, appendix B and official code `NCSNv2` (29,694,083), with these multipliers | dilations:
    (1, 2, 2, 2) | (1, 1, 2, 4) for 28, 32 and 64 pixels, also NCSN's;  (1, 2, 2, 4, 4) | (1, 1, 1, 2, 4) for 96 and 128
    (`NCSNv2Deeper`);  (1, 2, 2, 2, 4, 4) | (1, 1, 1, 1, 2, 4) for 256 (`NCSNv2Deepest`).

    t: c_noise, the level counted from the largest noise, 0 ... levels - 1, or any real number: the norms' parameters
        are interpolated between levels and constant beyond the last ones. Ignored if levels is None.
    Unlike the official networks this one does not rescale x to [-1, 1] or divide its output by sigma.
    image_size: used only to check that it is divisible; H and W may be any multiples of the same power of two.
    levels: number of noise levels of the conditional norms (NCSN); None: the network is not conditioned on the level
        (NCSNv2), and its refinement blocks have no norms.
    pool: 5x5 pooling in the refinement blocks: "average" (NCSN) or "max" (NCSNv2).
    checkpoint: recompute the blocks in the backward pass (gradient checkpointing): less memory, more time.
    classes: number of classes of the labels (B,), 0 ... classes - 1, and `classes` for the null label; None: no labels.
    Raises ValueError for sizes that do not fit together: of the network at once, of an input in `forward`.
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        image_size: Count,
        out_channels: Count | None = None,
        channels: Annotated[int, Ge(2)] = 128,
        multipliers: Multipliers = (1, 2, 2, 2),
        dilations: tuple[Count, ...] = (1, 1, 2, 4),
        blocks: Count = 2,
        levels: Count | None = None,
        pool: Literal["average", "max"] = "max",
        checkpoint: bool = False,
        classes: Count | None = None,
    ) -> None:
        super().__init__()
        check_stages(multipliers, dilations)
        self.classes = classes
        self.halvings, self.levels = sum(dilation == 1 for dilation in dilations[1:]), levels
        check_size(image_size, self.halvings)
        self.checkpoint = checkpoint
        widths = [channels * multiplier for multiplier in multipliers]
        self.conv_in = Conv3x3(in_channels, widths[0])
        self.down = nn.ModuleList()
        for stage, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            above = widths[max(stage - 1, 0)]
            first = DilatedBlock(above, width, dilation, levels, first=stage > 0)
            rest = (DilatedBlock(width, width, dilation, levels) for _ in range(blocks - 1))
            self.down.append(nn.ModuleList([first, *rest]))
        under = widths[-1]
        self.up = nn.ModuleList([RefineBlock([under], under, levels, pool)])
        for stage in reversed(range(len(widths) - 1)):
            above = widths[max(stage - 1, 0)]
            self.up.append(RefineBlock([widths[stage], under], above, levels, pool, units=1 if stage else 3))
            under = above
        self.norm = normalise(widths[0], levels)
        self.conv_out = Conv3x3(widths[0], out_channels or in_channels)
        for norm in self.modules() if classes is not None else ():
            if isinstance(norm, LabelledNorm):
                norm.add_labels(classes)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        check_input(x, self.conv_in.in_channels, self.halvings + 1)
        check_label(self.classes, label)
        position = None if self.levels is None and label is None else Position.of(t, self.levels, label)
        h, skips = self.conv_in(x), []
        for stage in self.down:
            for block in stage:
                h = self.compute(block, h, position)
            skips.append(h)
        before: list[Tensor] = []
        for block in self.up:
            before = [self.compute(block, [skips.pop(), *before], position)]
        return self.conv_out(F.elu(self.norm(before[0], position), inplace=True))

    def compute(self, block: nn.Module, inputs: Tensor | list[Tensor], position: Position | None) -> Tensor:
        """Output of a block, whose activations are recomputed in the backward pass with `checkpoint`."""
        if self.checkpoint and self.training:
            return recompute(block, inputs, position, use_reentrant=False)
        return block(inputs, position)


def check_stages(multipliers: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    """Raise ValueError unless there is one dilation per stage."""
    if len(dilations) != len(multipliers):
        raise ValueError(
            f"dilations={list(dilations)}, multipliers={list(multipliers)}: both need one number per stage"
        )


def check_size(image_size: int, halvings: int) -> None:
    """Raise ValueError unless the image can be halved this often."""
    if image_size % 2**halvings:
        raise ValueError(
            f"image_size={image_size} cannot be halved {halvings} times, once for each dilation of 1 after the first: "
            f"pad the images to a multiple of {2**halvings}, or dilate more stages"
        )
