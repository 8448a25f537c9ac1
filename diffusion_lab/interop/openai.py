"""ADM's U-Net and classifier in the layout of improved-diffusion and guided-diffusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.network import ADMUNet, NoisyClassifier
from diffusion_lab.network.stage import Stage

PARTS: Parts = {
    "layer": {"": (Source(""),)},
    "change": {".0": (Source(".0.op"),)},
    "upsample": {".0": (Source(".conv"),)},
    "residual": {
        ".norm1": (Source(".in_layers.0"),),
        ".conv1": (Source(".in_layers.2"),),
        ".modulation": (Source(".emb_layers.1"),),
        ".norm2": (Source(".out_layers.0"),),
        ".conv2": (Source(".out_layers.3"),),
        ".shortcut": (Source(".skip_connection"),),
    },
    "attention": {".norm": (Source(".norm"),), ".qkv": (Source(".qkv"),), ".out": (Source(".proj_out"),)},
}


def unet(network: ADMUNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the weights of a `UNetModel` to a state dict of `ADMUNet`.

    The label table gets one row more, for the null label, which those programs do not train: it is 0.
    """
    official = dict(official)
    if "label_emb.weight" in official:
        official["label_emb.weight"] = torch.cat([official["label_emb.weight"], official["label_emb.weight"][:1] * 0])
    return convert(network, official, all_links(network), strict=strict)


def classifier(network: NoisyClassifier, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the weights of an `EncoderUNetModel` with attention pooling to a state dict of `NoisyClassifier`."""
    return convert(network, official, all_links(network), strict=strict)


def trainable_order(network: nn.Module) -> list[str]:
    """Official names of the trained weights."""
    return [link.theirs for link in all_links(network)]


def all_links(network: ADMUNet | NoisyClassifier) -> list[Link]:
    """The links of all tensors of a network."""
    found = list(links(blocks(network), PARTS, network.state_dict().keys()))
    if isinstance(network, NoisyClassifier):
        found.append(Link("pool.2.position", "out.2.positional_embedding", Tensor.t))
    elif network.embedding.labels is not None:
        found.append(Link("embedding.labels.weight", "label_emb.weight"))
    return found


def blocks(network: ADMUNet | NoisyClassifier) -> Iterator[tuple[str, str, str]]:
    """(type, our name, their name) of every block, in the order of their program."""
    yield from (("layer", f"embedding.dense{i}", f"time_embed.{2 * i - 2}") for i in (1, 2))
    yield "layer", "conv_in", "input_blocks.0.0"
    for i, stage in enumerate(network.down):
        yield from parts_of(stage, f"down.{i}", f"input_blocks.{i + 1}", 0, "change")
    yield from parts_of(network.middle[0], "middle.0", "middle_block", 0)
    yield "residual", "middle.1.residual", "middle_block.2"
    if isinstance(network, NoisyClassifier):
        yield "layer", "pool.0", "out.0"
        yield "layer", "pool.2.qkv", "out.2.qkv_proj"
        yield "layer", "pool.2.out", "out.2.c_proj"
        return
    block, position = -1, 0
    for i, (stage, joins) in enumerate(zip(network.up, network.joins, strict=True)):
        # Their upsampling is the last layer of the block before it.
        block, position = (block + 1, 0) if joins else (block, position)
        yield from parts_of(stage, f"up.{i}", f"output_blocks.{block}", position, "upsample")
        position = 1 + (isinstance(stage, Stage) and not isinstance(stage.attention, nn.Identity))
    yield from (("layer", f"conv_out.{i}", f"out.{i}") for i in (0, 2))


def parts_of(
    stage: nn.Module, ours: str, theirs: str, position: int, change: str = "change"
) -> Iterator[tuple[str, str, str]]:
    """The residual block and the attention of a stage, or its convolution that changes the resolution."""
    if not isinstance(stage, Stage):
        yield change, ours, theirs if change == "change" else f"{theirs}.{position}"
        return
    yield "residual", f"{ours}.residual", f"{theirs}.{position}"
    if not isinstance(stage.attention, nn.Identity):
        yield "attention", f"{ours}.attention", f"{theirs}.{position + 1}"
