"""Weights of EDM's networks for CIFAR-10, FFHQ and AFHQ (Karras et al. 2022, `SongUNet`), as a plain state dict.

NVlabs' checkpoints are pickled code, which is never executed here; docs/guide/checkpoints.md says how to convert one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.score_sde import FREQUENCIES
from diffusion_lab.network import NCSNpp

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
