"""diffusers' UNet2DModel as NCSN++ with both pyramids, ScoreSDE's network for images of 256x256; in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion_lab.interop.diffusers import PARTS as OF_UNET
from diffusion_lab.interop.diffusers import Settings, check_config, described, separated
from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.score_sde import FREQUENCIES
from diffusion_lab.network import NCSNpp

PARTS: Parts = {**OF_UNET, "layer": {"": (Source(""),)}}

SETTINGS: Settings = {
    "center_input_sample": (False, True),
    "flip_sin_to_cos": (True, False),
    "attention_head_dim": (8, None),
    "mid_block_scale_factor": (1, math.sqrt(2)),
    "norm_num_groups": (32, None),
    "norm_eps": (1e-5, 1e-6),
    "time_embedding_type": ("positional", "fourier"),
}
"""Settings that do not affect names or shapes -> diffusers' default, and the value of NCSN++."""


def unet(network: NCSNpp, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of a UNet2DModel, whose output is the score, to one of `NCSNpp`, whose is sigma times it.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(network, official, unet_links(network), strict=strict)


def to_unet2d(network: NCSNpp) -> dict[str, Tensor]:
    """The inverse of `unet`: the weights of a network as the state dict of a UNet2DModel with `unet2d_config`."""
    return separated(network.state_dict(), unet_links(network))


def trainable_order(network: NCSNpp) -> list[str]:
    """Return the official names of the trained weights."""
    return [link.theirs for link in unet_links(network) if link.ours != FREQUENCIES]


def unet_links(network: NCSNpp) -> list[Link]:
    """Return a link for each official tensor."""
    return [Link(FREQUENCIES, "time_proj.weight"), *links(blocks(network), PARTS, network.state_dict().keys())]


def blocks(network: NCSNpp) -> Iterator[tuple[str, str, str]]:
    """Yield every block as (type, our name, diffusers' name)."""

    def stages(ours: str, theirs: str, count: int) -> Iterator[tuple[str, str, str]]:
        attending = [i for i in range(count) if f"{ours}.{i}.attention.norm.weight" in present]
        for i in range(count):
            yield "residual", f"{ours}.{i}.residual", f"{theirs}.resnets.{i}"
        for number, i in enumerate(attending):
            yield "attention", f"{ours}.{i}.attention", f"{theirs}.attentions.{number}"

    present, last = network.state_dict().keys(), len(network.up) - 1
    yield from (("layer", f"time.dense{i}", f"time_embedding.linear_{i}") for i in (1, 2))
    yield "layer", "conv_in", "conv_in"
    for level, down in enumerate(network.down):
        yield from stages(f"down.{level}", f"down_blocks.{level}", len(down))
        if level < last:
            yield "residual", f"downsample.{level}.residual", f"down_blocks.{level}.resnet_down"
            yield "layer", f"input_pyramid.{level}.conv", f"down_blocks.{level}.skip_conv"
    yield from stages("middle", "mid_block", 2)
    for index, up in enumerate(network.up):
        yield from stages(f"up.{index}", f"up_blocks.{index}", len(up))
        head = f"output_pyramid.{index}.head"
        norm, conv = (
            ("conv_norm_out", "conv_out")
            if index == last
            else (f"up_blocks.{index}.skip_{k}" for k in ("norm", "conv"))
        )
        yield from (("layer", f"{head}.0", norm), ("layer", f"{head}.2", conv))
        if index < last:
            yield "residual", f"upsample.{index}.residual", f"up_blocks.{index}.resnet_up"


def unet2d_config(network: NCSNpp, size: Sequence[int]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that computes the score; size: (H, W) of its images.

    Raises ValueError for an NCSN++ that diffusers does not have.
    """
    expected = {
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "resblock_type": "biggan",
        "embedding": "fourier",
        "fir": True,
        "conditional": True,
    }
    if different := [
        f"network.{key}={getattr(network, key)}" for key, value in expected.items() if getattr(network, key) != value
    ]:
        wanted = ", ".join(f"{key}={value}" for key, value in expected.items())
        raise ValueError(f"no NCSN++ with {different[0]}: it has {wanted}")
    norms = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    pyramid = network.input_pyramid[0] if len(network.input_pyramid) else None
    if (
        norms != {32}
        or network.conv_in.in_channels != 3
        or network.time.labels
        or getattr(pyramid, "concatenate", True)
    ):
        raise ValueError(
            "no such NCSN++: it has RGB images, at least 128 channels, progressive_combine=sum, and no labels"
        )
    down = [hasattr(stages[-1].attention, "heads") for stages in network.down]
    up = [hasattr(stages[-1].attention, "heads") for stages in network.up]
    return {
        **described(network, size, None),
        "down_block_types": [f"{'Attn' * attends}SkipDownBlock2D" for attends in down],
        "up_block_types": [f"{'Attn' * attends}SkipUpBlock2D" for attends in up],
        "block_out_channels": [stages[0].residual.conv1.out_channels for stages in network.down],
        "layers_per_block": len(network.down[0]),
        **{key: value for key, (_, value) in SETTINGS.items()},
    }


def check_settings(network: NCSNpp, file: Path) -> None:
    """Check the config.json next to a file of weights, if it exists, against our network, as that of `UNet`."""
    check_config(SETTINGS, file)
