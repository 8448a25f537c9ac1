"""The RefineNets of NCSN and NCSNv2."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from diffusion_lab.network.embedding import check_label
from diffusion_lab.network.normalization import LabelledNorm, Position
from diffusion_lab.network.refine import POOLS, DilatedBlock, RefineBlock, convolution, normalise
from diffusion_lab.network.sizes import check_choice, check_input, check_levels


class RefineNet(nn.Module):
    """Network of NCSN and NCSNv2: x (B, in_channels, H, W) and t (B,) -> (B, out_channels, H, W).

    On the way down stage i has channels * multipliers[i] channels and `blocks` residual blocks. The first stage has the
    resolution of the image; each later one halves it, or, where its dilation is above 1, keeps it and sees further by
    dilated convolutions. On the way up a refinement block a stage merges what the stage gave with the block before.
    Sources: Song & Ermon 2019, appendix A and official code `CondRefineNetDilated` (30,117,635 parameters at CIFAR-10);
    Song & Ermon 2020, appendix B and official code `NCSNv2` (29,694,083), with these multipliers | dilations:
    (1, 2, 2, 2) | (1, 1, 2, 4) for 28, 32 and 64 pixels, also NCSN's;  (1, 2, 2, 4, 4) | (1, 1, 1, 2, 4) for 96 and 128
    (`NCSNv2Deeper`);  (1, 2, 2, 2, 4, 4) | (1, 1, 1, 1, 2, 4) for 256 (`NCSNv2Deepest`).

    t: the level, counted from the largest noise: 0 ... levels - 1, or any real number: between two levels the norms'
        parameters are interpolated, beyond the ladder its end is taken. Not read where levels is None.
    Unlike the official networks this one neither moves x to [-1, 1] nor divides its output by sigma.
    image_size: only refused where it cannot be halved; every H and W that can be halved so often will do.
    levels: noise levels that it is told apart, by conditional norms (NCSN); None: it is not told the level (NCSNv2),
        and its refinement blocks have no norms.
    pool: over 5x5 pixels, in the refinement blocks: "average" (NCSN) or "max" (NCSNv2).
    checkpoint: compute the blocks again in the backward pass, which takes less memory and more time.
    classes: of the labels (B,) that its norms are told, 0 ... classes - 1, and `classes` for none; None: no labels.
    Raises ValueError where sizes do not fit together: those of the net at once, of an input in `forward`.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        out_channels: int | None = None,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        dilations: tuple[int, ...] = (1, 1, 2, 4),
        blocks: int = 2,
        levels: int | None = None,
        pool: Literal["average", "max"] = "max",
        checkpoint: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        check_levels(multipliers, blocks)
        check_choice("pool", pool, POOLS)
        check_stages(multipliers, dilations, levels)
        self.classes = classes
        self.halvings, self.levels = sum(dilation == 1 for dilation in dilations[1:]), levels
        check_size(image_size, self.halvings)
        self.checkpoint = checkpoint
        widths = [channels * multiplier for multiplier in multipliers]
        self.conv_in = convolution(in_channels, widths[0])
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
        self.conv_out = convolution(widths[0], out_channels or in_channels)
        for norm in self.modules() if classes is not None else ():
            if isinstance(norm, LabelledNorm):
                norm.tell_labels(classes)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        check_input(x, self.conv_in.in_channels, self.halvings + 1)
        check_label(self.classes, label)
        position = None if self.levels is None and label is None else Position.of(t, self.levels, label)
        h, kept = self.conv_in(x), []
        for stage in self.down:
            for block in stage:
                h = self.compute(block, h, position)
            kept.append(h)
        before: list[Tensor] = []
        for block in self.up:
            before = [self.compute(block, [kept.pop(), *before], position)]
        return self.conv_out(F.elu(self.norm(before[0], position), inplace=True))

    def compute(self, block: nn.Module, inputs: Tensor | list[Tensor], position: Position | None) -> Tensor:
        """Output of a block, whose insides are not kept where they are to be computed again."""
        if self.checkpoint and self.training:
            return recompute(block, inputs, position, use_reentrant=False)
        return block(inputs, position)


def check_stages(multipliers: tuple[int, ...], dilations: tuple[int, ...], levels: int | None) -> None:
    """Raise ValueError where the stages are not described one by one, or the ladder has no level."""
    if len(dilations) != len(multipliers) or min(dilations) < 1:
        raise ValueError(
            f"dilations={list(dilations)}, multipliers={list(multipliers)}: "
            f"give both one number a stage, and each dilation at least 1"
        )
    if levels is not None and levels < 1:
        raise ValueError(f"levels={levels}: give at least 1, or null for a network that is not told the level")


def check_size(image_size: int, halvings: int) -> None:
    """Raise ValueError where the image cannot be halved so often."""
    if image_size % 2**halvings:
        raise ValueError(
            f"image_size={image_size} cannot be halved {halvings} times, as the dilations of 1 after the first ask: "
            f"pad the images to a multiple of {2**halvings}, or dilate more stages"
        )
