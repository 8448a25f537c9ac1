"""Weights of the official NCSN and NCSNv2 (Song & Ermon 2019, 2020), without the prefix "module."."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from diffusion_lab.interop.mapping import Link, convert
from diffusion_lab.network import RefineNet

DOWN = {6: ("1", "2", "3", "31", "4", "5")}
"""Number of stages -> their official names, from the highest resolution; by default they count from 1."""

UP = {6: ("1", "2", "31", "3", "4", "5")}
"""Number of stages -> official names of the refinement blocks, from the lowest resolution."""

LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "table": "embed.weight",
    "alpha": "alpha",
    "gamma": "gamma",
    "beta": "beta",
}
"""Our tensors of a layer -> official names, in official order."""


def refinenet(network: RefineNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of the official NCSN or NCSNv2 with the same settings to one of `RefineNet`.

    The buffer "sigmas" of NCSNv2 is ignored. Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(network, official, refinenet_links(network), ignored=["sigmas"], strict=strict)


def trainable_order(network: RefineNet) -> list[str]:
    """Return the official names of the trained weights, in the order of the official optimiser."""
    return [link.theirs for link in refinenet_links(network)]


def refinenet_links(network: RefineNet) -> Iterator[Link]:
    """Yield a link for each official tensor, in official order."""
    present = network.state_dict().keys()
    for ours, theirs in layers(network):
        for leaf, official in LEAVES.items():
            if f"{ours}.{leaf}" in present:
                yield Link(f"{ours}.{leaf}", f"{theirs}.{official}")


def layers(network: RefineNet) -> Iterator[tuple[str, str]]:
    """Yield every layer that one of the networks has, as (our name, official name), in official order."""
    yield from [("conv_in", "begin_conv"), ("norm", "normalizer"), ("conv_out", "end_conv")]
    depth = len(network.down)
    counted = tuple(str(number + 1) for number in range(depth))
    for stage, number in enumerate(DOWN.get(depth, counted)):
        for i, block in enumerate(network.down[stage]):
            pooled = ".conv" if block.halves else ""
            names = {"conv1": "conv1", "norm2": "normalize2", "conv2": f"conv2{pooled}"}
            names |= {"shortcut": f"shortcut{pooled}", "norm1": "normalize1"}
            yield from ((f"down.{stage}.{i}.{ours}", f"res{number}.{i}.{theirs}") for ours, theirs in names.items())
    # Sorted by name, the order of registration: 31 is executed before 3, but registered after it.
    for number, index in sorted(zip(UP.get(depth, counted), range(depth), strict=True)):
        ours, theirs, block = f"up.{index}", f"refine{number}", network.up[index]
        for i, adapt in enumerate(block.adapt):
            yield from units(len(adapt.units), f"{ours}.adapt.{i}", f"{theirs}.adapt_convs.{i}")
        yield from units(len(block.units.units), f"{ours}.units", f"{theirs}.output_convs")
        for part, official in (("fuse", "msf"), ("pool", "crp")):
            for kind in ("convs", "norms"):
                yield from ((f"{ours}.{part}.{kind}.{i}", f"{theirs}.{official}.{kind}.{i}") for i in range(2))


def units(count: int, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yield the layers of `count` residual units of two convolutions each."""
    for i in range(count):
        for j in range(2):
            for kind in ("norm", "conv"):
                yield f"{ours}.units.{i}.{j}.{kind}", f"{theirs}.{i + 1}_{j + 1}_{kind}"
