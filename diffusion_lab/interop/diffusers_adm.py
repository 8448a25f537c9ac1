"""diffusers' UNet2DModel as the U-Net of IDDPM and ADM, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion_lab.interop.diffusers import PARTS as OF_UNET
from diffusion_lab.interop.diffusers import Settings, attention_settings, check_config, described, separated
from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.network import ADMUNet
from diffusion_lab.network.stage import Stage

PARTS: Parts = {
    "layer": {"": (Source(""),)},
    "change": {".0": (Source(".conv"),)},
    "residual": {
        **{f".{name}": (Source(f".{name}"),) for name in ("norm1", "conv1", "norm2", "conv2")},
        ".modulation": (Source(".time_emb_proj"),),
        ".shortcut": (Source(".conv_shortcut"),),
    },
    "attention": OF_UNET["attention"],
}

SETTINGS: Settings = {
    "center_input_sample": (False, False),
    "downsample_padding": (1, 1),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_scale_factor": (1, 1),
    "norm_eps": (1e-5, 1e-5),
    "time_embedding_type": ("positional", "positional"),
}
"""Settings that do not affect names or shapes -> diffusers' default, and the value of ADM's U-Net."""


def unet(network: ADMUNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of a UNet2DModel that computes the same function to one of `ADMUNet`.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return regrouped(network, convert(network, official, unet_links(network), strict=strict), to_heads=True)


def to_unet2d(network: ADMUNet) -> dict[str, Tensor]:
    """The inverse of `unet`: the weights of a network as the state dict of a UNet2DModel with `unet2d_config`."""
    return separated(regrouped(network, network.state_dict(), to_heads=False), unet_links(network))


def regrouped(network: ADMUNet, weights: dict[str, Tensor], to_heads: bool) -> dict[str, Tensor]:
    """Reorder rows of qkv from groups of q, k, v to groups of heads, where the network has them (IDDPM), or back."""
    found = dict(weights)
    for name, module in network.named_modules():
        if getattr(module, "new_order", True):
            continue
        for leaf in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
            if leaf in found:
                sizes = (3, module.heads, -1) if to_heads else (module.heads, 3, -1)
                found[leaf] = found[leaf].unflatten(0, sizes).transpose(0, 1).flatten(0, 2)
    return found


def trainable_order(network: ADMUNet) -> list[str]:
    """Return the official names of the trained weights."""
    return [link.theirs for link in unet_links(network)]


def unet_links(network: ADMUNet) -> list[Link]:
    """Return a link for each official tensor."""
    present = network.state_dict().keys()
    labels = Link("embedding.labels.weight", "class_embedding.weight")
    return [*links(blocks(network), PARTS, present), *([labels] if labels.ours in present else [])]


def blocks(network: ADMUNet) -> Iterator[tuple[str, str, str]]:
    """Yield every block as (type, our name, diffusers' name)."""
    yield from (("layer", f"embedding.dense{i}", f"time_embedding.linear_{i}") for i in (1, 2))
    yield "layer", "conv_in", "conv_in"
    for way in ("down", "up"):
        level, position = 0, 0
        for i, stage in enumerate(getattr(network, way)):
            if changes(stage):
                block = f"{way}_blocks.{level}.{way}samplers.0"
                yield (
                    ("residual", f"{way}.{i}.residual", block)
                    if isinstance(stage, Stage)
                    else ("change", f"{way}.{i}", block)
                )
                level, position = level + 1, 0
            else:
                yield "residual", f"{way}.{i}.residual", f"{way}_blocks.{level}.resnets.{position}"
                yield "attention", f"{way}.{i}.attention", f"{way}_blocks.{level}.attentions.{position}"
                position += 1
    yield "residual", "middle.0.residual", "mid_block.resnets.0"
    yield "attention", "middle.0.attention", "mid_block.attentions.0"
    yield "residual", "middle.1.residual", "mid_block.resnets.1"
    yield "layer", "conv_out.0", "conv_norm_out"
    yield "layer", "conv_out.2", "conv_out"


def changes(stage: nn.Module) -> bool:
    """Whether a stage changes the resolution."""
    return not isinstance(stage, Stage) or not isinstance(stage.residual.resample, nn.Identity)


def settings(network: ADMUNet) -> Settings:
    """`SETTINGS`, and those of this network; raises ValueError as `attention_settings`."""
    found = {**SETTINGS, **attention_settings(network)}
    resample = "resnet" if any(isinstance(s, Stage) and changes(s) for s in network.down) else "conv"
    shift = "scale_shift" if network.middle[0].residual.scale_shift else "default"
    return {
        **found,
        "attn_norm_num_groups": (None, found["norm_num_groups"][1]),
        "resnet_time_scale_shift": ("default", shift),
        "downsample_type": ("conv", resample),
        "upsample_type": ("conv", resample),
    }


def unet2d_config(network: ADMUNet, size: Sequence[int]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that computes the same function; size: (H, W) of its images."""
    chosen = {key: value for key, (_, value) in settings(network).items()}
    levels, plain = len(network.widths), {"conv": ("Down", "Up"), "resnet": ("ResnetDownsample", "ResnetUpsample")}
    kinds = [("AttnDown", "AttnUp") if network.attends(i) else plain[chosen["downsample_type"]] for i in range(levels)]
    return {
        **described(network, size, network.embedding.labels),
        "down_block_types": [f"{down}Block2D" for down, _ in kinds],
        "up_block_types": [f"{up}Block2D" for _, up in reversed(kinds)],
        "block_out_channels": list(network.widths),
        "layers_per_block": (len(network.down) + 1) // levels - 1,
        **chosen,
    }


def check_settings(network: ADMUNet, file: Path) -> None:
    """Check the config.json next to a file of weights, if it exists, against our network, as that of `UNet`."""
    check_config(settings(network), file)
