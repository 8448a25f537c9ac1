"""diffusers' UNet2DModel: DDPM's U-Net with other names, with old or new names of the attention; in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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
BLOCKS = (
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
"""Patterns of DDIM's names of blocks -> diffusers' names, which count upsampling levels from the bottom."""

OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names in the attention before diffusers 0.14, which files on the hub still have -> names since."""

LABELS = Link("time.labels.weight", "class_embedding.weight")
"""The table of class labels."""

SETTINGS: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "downsample_padding": (1, 0),
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1, 1),
    "norm_eps": (1e-5, 1e-6),
    "time_embedding_type": ("positional", "positional"),
}
"""Settings that do not affect names or shapes -> diffusers' default, and the value of DDPM's U-Net."""


def unet(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of a UNet2DModel that computes the same function (see `check_settings`) to one of `UNet`.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(
        network, {current_name(name): weight for name, weight in official.items()}, unet_links(network), strict=strict
    )


def to_unet2d(network: UNet) -> dict[str, Tensor]:
    """The inverse of `unet`: the weights of a network as the state dict of a UNet2DModel with `unet2d_config`.

    Weights of augmentation labels are left out: without labels they have no effect.
    """
    return separated(network.state_dict(), unet_links(network))


def separated(ours: Mapping[str, Tensor], links: Iterable[Link]) -> dict[str, Tensor]:
    """The inverse of `mapping.convert` for links without transforms: our tensors, and parts of them, by their names."""
    groups: dict[str, list[str]] = {}
    for link in links:
        groups.setdefault(link.ours, []).append(link.theirs)
    chunks = ((names, ours[name].chunk(len(names))) for name, names in groups.items())
    return {name: chunk for names, split in chunks for name, chunk in zip(names, split, strict=True)}


def trainable_order(network: UNet) -> list[str]:
    """Return the official names of the trained weights, in order of execution."""
    return [link.theirs for link in unet_links(network)]


def unet_links(network: UNet) -> list[Link]:
    """Return a link for each official tensor, in order of execution."""
    present = network.state_dict().keys()
    return [*links(blocks(network), PARTS, present), *([LABELS] if LABELS.ours in present else [])]


def blocks(network: UNet) -> Iterator[tuple[str, str, str]]:
    """Yield every block in order of execution, as (type, our name, diffusers' name)."""
    bottom = len(network.up) - 1
    for kind, ours, theirs in walk(network):
        name = re.sub(r"^up\.(\d+)", lambda level: f"up.{bottom - int(level[1])}", theirs)
        for pattern, official in BLOCKS:
            name = re.sub(pattern, official, name)
        yield kind, ours, name


def current_name(name: str) -> str:
    """Return a name as in diffusers since version 0.14."""
    for old, new in OLD.items():
        name = name.replace(old, new)
    return name


Settings = dict[str, tuple[Any, Any]]


def settings(network: UNet) -> Settings:
    """`SETTINGS`, and those of this network.

    Raises ValueError for attention in some decoder blocks of a level only, and as `attention_settings`.
    """
    attending = [[hasattr(stage.attention, "heads") for stage in stages] for stages in network.up]
    if any(len(set(level)) > 1 for level in attending):
        raise ValueError("no U-Net with attention in some blocks of a level only, as network.up_attention=last")
    return {**SETTINGS, **attention_settings(network)}


def attention_settings(network: nn.Module) -> Settings:
    """The width of all heads (None: one head), and the number of groups of all norms.

    Raises ValueError if there are several, which UNet2DModel does not support.
    """
    attentions = [module for module in network.modules() if hasattr(module, "heads")]
    widths = sorted({module.out.in_features // module.heads for module in attentions})
    groups = sorted({module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)})
    one = all(module.heads == 1 for module in attentions)
    if len(groups) > 1 or not (one or len(widths) == 1):
        what = f"norms of {groups} groups" if len(groups) > 1 else f"heads of {widths} channels"
        raise ValueError(f"no U-Net with {what}: it has one number for all")
    return {"attention_head_dim": (8, None if one else widths[0]), "norm_num_groups": (32, groups[0])}


def unet2d_config(network: UNet, size: Sequence[int]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that computes the same function; size: (H, W) of its images.

    Raises ValueError as `settings`.
    """
    attends = [hasattr(stages[0].attention, "heads") for stages in network.down]
    down, up = ([f"{'Attn' * a}{way}Block2D" for a in attends] for way in ("Down", "Up"))
    return {
        **described(network, size, network.time.labels),
        "down_block_types": down,
        "up_block_types": up[::-1],
        "block_out_channels": [stages[0].residual.conv1.out_channels for stages in network.down],
        "layers_per_block": len(network.down[0]),
        **{key: value for key, (_, value) in settings(network).items()},
    }


def described(network: nn.Module, size: Sequence[int], labels: nn.Embedding | None) -> dict[str, Any]:
    """The part of the configuration that all networks have: sizes, and the number of labels with the null label."""
    (height, width), head = size, network.conv_out or network.output_pyramid[-1].head
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": network.conv_in.in_channels,
        "out_channels": head[2].out_channels,
        "num_class_embeds": labels and labels.num_embeddings,
    }


def check_settings(network: UNet, file: Path) -> None:
    """Check the config.json next to a file of weights, if it exists, against our network.

    Raises ValueError if a setting that affects no name or shape differs.
    """
    check_config(settings(network), file)


def check_config(wanted: Settings, file: Path) -> None:
    """Check the config.json next to a file of weights, if it exists: setting -> (diffusers' default, the value needed).

    Raises ValueError if one differs.
    """
    config = file.with_name("config.json")
    if not config.is_file():
        return
    given = json.loads(config.read_text())
    for key, (default, needed) in wanted.items():
        if given.get(key, default) != needed:
            raise ValueError(f"{config} has {key}={given.get(key, default)}, but our U-Net has {key}={needed}")
