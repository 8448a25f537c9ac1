"""Weights of EDM's networks (Karras et al. 2022), as a plain state dict.

`SongUNet` is the network for CIFAR-10, FFHQ and AFHQ, `DhariwalUNet` the one for ImageNet.

NVlabs' checkpoints are pickled code, which is never executed here; docs/guide/checkpoints.md says how to convert one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffusion_lab.interop.diffusers_adm import changes, regrouped
from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.score_sde import FREQUENCIES
from diffusion_lab.network import ADMUNet, NCSNpp

PARTS: Parts = {
    "layer": {"": (Source(""),)},
    "down": {".conv": (Source(""),)},
    "residual": {
        ".norm1": (Source(".norm0"),),
        ".conv1": (Source(".conv0"),),
        ".shift": (Source(".affine"),),
        ".norm2": (Source(".norm1"),),
        ".conv2": (Source(".conv1"),),
        ".shortcut": (Source(".skip"),),
    },
    "attention": {".norm": (Source(".norm2"),), ".qkv": (Source(".qkv"),), ".out": (Source(".proj"),)},
}


def song_unet(network: NCSNpp, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of a `SongUNet` with the same settings to one of `NCSNpp`.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    ordered = {name: grouped(weight) if ".qkv." in name else weight for name, weight in official.items()}
    filters = [name for name in official if name.endswith("resample_filter")]
    return convert(network, ordered, song_links(network), ignored=filters, strict=strict)


def grouped(weight: Tensor) -> Tensor:
    """Rows in the order q, k, v; the official ones are q, k and v of the first channel, of the second, ..."""
    return weight.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def trainable_order(network: nn.Module) -> list[str]:
    """Return the official names of the trained weights."""
    return [link.theirs for link in song_links(network) if link.ours != FREQUENCIES]


def song_links(network: NCSNpp) -> list[Link]:
    """Return a link for each official tensor of a network with resblock_type="biggan"."""
    first = [Link(FREQUENCIES, "map_noise.freqs")] if network.embedding == "fourier" else []
    bias_free = "time.augmentation.dense.bias"
    return first + [link for link in links(walk(network), PARTS, network.state_dict()) if link.ours != bias_free]


def walk(network: NCSNpp) -> Iterator[tuple[str, str, str]]:
    """Yield every block as (type, our name, their name)."""
    present = network.state_dict()

    def stage(ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
        yield "residual", f"{ours}.residual", theirs
        if f"{ours}.attention.norm.weight" in present:
            yield "attention", f"{ours}.attention", theirs

    ours = ("time.labels.dense", "time.augmentation.dense", "time.dense1", "time.dense2")
    theirs = ("map_label", "map_augment", "map_layer0", "map_layer1")
    yield from (("layer", *names) for names in zip(ours, theirs, strict=True))
    sizes = [f"{network.image_size >> level}x{network.image_size >> level}" for level in range(len(network.down))]
    yield "layer", "conv_in", f"enc.{sizes[0]}_conv"
    for level, size in enumerate(sizes):
        if level > 0:
            yield from stage(f"downsample.{level - 1}", f"enc.{size}_down")
            yield "down", f"input_pyramid.{level - 1}.resample", f"enc.{size}_aux_residual"
        for i in range(len(network.down[level])):
            yield from stage(f"down.{level}.{i}", f"enc.{size}_block{i}")
    for i in range(2):
        yield from stage(f"middle.{i}", f"dec.{sizes[-1]}_in{i}")
    for index, size in enumerate(reversed(sizes)):
        if index > 0:
            yield from stage(f"upsample.{index - 1}", f"dec.{size}_up")
        for i in range(len(network.up[index])):
            yield from stage(f"up.{index}.{i}", f"dec.{size}_block{i}")
    yield "layer", "conv_out.0", f"dec.{sizes[0]}_aux_norm"
    yield "layer", "conv_out.2", f"dec.{sizes[0]}_aux_conv"


OF_ADM: Parts = {
    **PARTS,
    "residual": {
        **{ours: theirs for ours, theirs in PARTS["residual"].items() if ours != ".shift"},
        ".modulation": (Source(".affine"),),
    },
}


def dhariwal_unet(network: ADMUNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of a `DhariwalUNet` with the same settings to one of `ADMUNet`.

    Its linear map of labels is our table of them; the null label, no label there, is 0.

    Raises:
        ValueError: if weights are missing, unexpected or of another shape, or the norms have other groups.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    if any(norm.num_groups != min(32, norm.num_channels // 4) for norm in norms):
        raise ValueError(
            "EDM's norms have at least 4 channels in a group, ours as many groups as divide 32: use 128 channels"
        )
    ordered = {name: grouped(weight) if ".qkv." in name else weight for name, weight in official.items()}
    filters = [name for name in official if name.endswith("resample_filter")]
    converted = convert(network, ordered, dhariwal_links(network), ignored=filters, strict=strict)
    return regrouped(network, converted, to_heads=True)


def with_null_label(weight: Tensor) -> Tensor:
    """The table (classes + 1, width) of a linear map (width, classes) of labels."""
    return torch.cat([weight.t(), weight.new_zeros(1, len(weight))])


def dhariwal_order(network: ADMUNet) -> list[str]:
    """Return the official names of the trained weights."""
    return [link.theirs for link in dhariwal_links(network)]


def dhariwal_links(network: ADMUNet) -> list[Link]:
    """Return a link for each official tensor."""
    present = network.state_dict().keys()
    labels = Link("embedding.labels.weight", "map_label.weight", with_null_label)
    found = links(dhariwal_walk(network), OF_ADM, present)
    bias_free = "embedding.augmentation.dense.bias"
    return [*(link for link in found if link.ours != bias_free), *([labels] if labels.ours in present else [])]


def dhariwal_walk(network: ADMUNet) -> Iterator[tuple[str, str, str]]:
    """Yield every block as (type, our name, their name)."""
    yield "layer", "embedding.augmentation.dense", "map_augment"
    yield from (("layer", f"embedding.dense{i}", f"map_layer{i - 1}") for i in (1, 2))
    size, position = network.image_size, 0
    yield "layer", "conv_in", f"enc.{size}x{size}_conv"
    for way, theirs, factor in (("down", "enc", 0.5), ("up", "dec", 2)):
        if way == "up":
            for i in range(2):
                yield "residual", f"middle.{i}.residual", f"dec.{size}x{size}_in{i}"
                yield "attention", f"middle.{i}.attention", f"dec.{size}x{size}_in{i}"
        for i, stage in enumerate(getattr(network, way)):
            size, position = (int(size * factor), 0) if changes(stage) else (size, position + 1)
            name = f"{theirs}.{size}x{size}_" + (f"block{position - 1}" if position else way)
            yield "residual", f"{way}.{i}.residual", name
            yield "attention", f"{way}.{i}.attention", name
        position = 0
    yield "layer", "conv_out.0", "out_norm"
    yield "layer", "conv_out.2", "out_conv"
