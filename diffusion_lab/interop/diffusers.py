"""Weights of diffusers' UNet2DModel: DDPM's U-Net under other names, in either spelling of its attention."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.unet import DDIM, walk
from diffusion_lab.network import UNet

PARTS: Parts = {
    **DDIM,
    "residual": {
        **DDIM["residual"],
        ".shift": (Source(".time_emb_proj"),),
        ".shortcut": (Source(".conv_shortcut"),),
    },
    "attention": {
        ".norm": (Source(".group_norm"),),
        ".qkv": (Source(".to_q"), Source(".to_k"), Source(".to_v")),
        ".out": (Source(".to_out.0"),),
    },
}
PLACES = (
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^(down|up)\.", r"\1_blocks."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.(down|up)sample$", r".\1samplers.0"),
)
"""DDIM's names of places and those of diffusers, which counts levels on the way up from the bottom."""

OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""The attention's names until version 0.14, which files on the hub still have, and those since."""

SETTINGS: dict[str, tuple[Any, Any]] = {
    "attention_head_dim": (8, None),
    "center_input_sample": (False, False),
    "downsample_padding": (1, 0),
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1, 1),
    "norm_eps": (1e-5, 1e-6),
    "time_embedding_type": ("positional", "positional"),
}
"""What no name or shape tells: the setting that diffusers takes where none is given, and that of DDPM's U-Net."""


def unet(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """State dict of `UNet` from that of a UNet2DModel that computes the same (see `check_settings`).

    Raises ValueError, in one line, where weights are missing, left over or of another shape.
    """
    return convert(
        network, {today(name): weight for name, weight in official.items()}, unet_links(network), strict=strict
    )


def trainable_order(network: UNet) -> list[str]:
    """Official names of the trained weights, in order of execution."""
    return [link.theirs for link in unet_links(network)]


def unet_links(network: UNet) -> list[Link]:
    """Each official tensor, in order of execution, with ours."""
    return list(links(places(network), PARTS, network.state_dict().keys()))


def places(network: UNet) -> Iterator[tuple[str, str, str]]:
    """Every block in order of execution, as (kind, our name, diffusers' name)."""
    bottom = len(network.up) - 1
    for kind, ours, theirs in walk(network):
        name = re.sub(r"^up\.(\d+)", lambda level: f"up.{bottom - int(level[1])}", theirs)
        for place, official in PLACES:
            name = re.sub(place, official, name)
        yield kind, ours, name


def today(name: str) -> str:
    """A name as diffusers spells it since version 0.14."""
    for old, new in OLD.items():
        name = name.replace(old, new)
    return name


def check_settings(network: UNet, file: Path) -> None:
    """Compare the config.json beside a file of weights, if there is one, with what our network computes.

    Raises ValueError, in one line, where a setting changes the output but no name and no shape.
    """
    config = file.with_name("config.json")
    if not config.is_file():
        return
    given = json.loads(config.read_text())
    wanted = {**SETTINGS, "norm_num_groups": (32, network.conv_out[0].num_groups)}
    for key, (default, needed) in wanted.items():
        if given.get(key, default) != needed:
            raise ValueError(f"{config} has {key}={given.get(key, default)}, and our U-Net computes {key}={needed}")
