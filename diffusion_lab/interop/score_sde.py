"""Weights of ScoreSDE's PyTorch program (Song et al. 2021), without the "module." before each name.

Its networks number their blocks in order of execution, "all_modules.0", "all_modules.1", ...; the "sigmas" beside them
are no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.unet import RESIDUAL, SCORE_SDE, score_sde_links
from diffusion_lab.network import NCSNpp, UNet

FREQUENCIES = "time.waves.frequencies"


def ddpm(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """State dict of `UNet(up_attention="last", pointwise_scale=0.1)` from that of the official "ddpm".

    Raises ValueError, in one line, where weights are missing, left over or of another shape.
    """
    return convert(network, official, score_sde_links(network), unread=["sigmas"], strict=strict)


def ncsnpp(network: NCSNpp, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """State dict of `NCSNpp` from that of the official "ncsnpp" of the same settings.

    The official network that is not conditional carries embeddings that it never reads; they are dropped.
    Raises ValueError, in one line, where weights are missing, left over or of another shape.
    """
    return convert(network, official, ncsnpp_links(network), unread=["sigmas"], strict=strict)


def trainable_order(network: nn.Module) -> list[str]:
    """Official names of the trained weights in official order: that of the nameless list in its EMA."""
    return [link.theirs for link in LINKS[type(network)](network) if link.ours != FREQUENCIES]


def mirrored(weight: Tensor) -> Tensor:
    """A kernel for the transposed convolution: the official one lies (out, in) and is mirrored before use."""
    return weight.transpose(0, 1).flip(2, 3)


PARTS: Parts = {
    **SCORE_SDE,
    "ddpm": SCORE_SDE["residual"],
    "biggan": {**RESIDUAL, ".shortcut": (Source(".Conv_2"),)},
    "fir_down": {".conv": (Source(".Conv2d_0"),)},
    "fir_up": {".conv": (Source(".Conv2d_0", turn=mirrored),)},
}


def ncsnpp_links(network: NCSNpp) -> list[Link]:
    """Each official tensor, in official order, with ours; or with a name we lack, where nothing ever reads it."""
    first = [Link(FREQUENCIES, "all_modules.0.W")] if network.embedding == "fourier" else []
    blocks = list(walk(network))
    numbered = ((kind, ours, f"all_modules.{number}") for number, (kind, ours) in enumerate(blocks, len(first)))
    shifts = {f"{ours}.shift.weight" for kind, ours in blocks if kind == network.resblock_type}
    return first + list(links(numbered, PARTS, network.state_dict().keys() | shifts))


def walk(network: NCSNpp) -> Iterator[tuple[str, str]]:
    """Every official block but the frequencies in order of execution, as (kind, our name)."""
    block, present = network.resblock_type, network.state_dict().keys()
    smaller, larger = ("fir_down", "fir_up") if network.fir else ("resample", "resample")

    def stages(place: str, count: int) -> Iterator[tuple[str, str]]:
        for i in range(count):
            yield block, f"{place}.{i}.residual"
            if f"{place}.{i}.attention.norm.weight" in present:
                yield "attention", f"{place}.{i}.attention"

    def change(place: str, convolution: str) -> tuple[str, str]:
        return (block, f"{place}.residual") if block == "biggan" else (convolution, f"{place}.0")

    def head(place: str) -> list[tuple[str, str]]:
        return [("layer", f"{place}.0"), ("layer", f"{place}.2")]

    if network.conditional:
        yield from [("layer", "time.dense1"), ("layer", "time.dense2")]
    yield "layer", "conv_in"
    for level, down in enumerate(network.down):
        if level > 0:
            yield change(f"downsample.{level - 1}", smaller)
            inputs = {"none": [], "input_skip": [("resample", "")], "residual": [(smaller, ".resample")]}
            yield from ((kind, f"input_pyramid.{level - 1}{part}") for kind, part in inputs[network.progressive_input])
        yield from stages(f"down.{level}", len(down))
    yield from stages("middle", 2)
    last = len(network.up) - 1
    for place, up in enumerate(network.up):
        yield from stages(f"up.{place}", len(up))
        paints, sums = head(f"output_pyramid.{place}.head"), [(larger, f"output_pyramid.{place}.resample")]
        yield from {"none": [], "output_skip": paints, "residual": sums if place else paints}[network.progressive]
        yield from [change(f"upsample.{place}", larger)] if place < last else []
    yield from head("conv_out") if network.progressive != "output_skip" else []


LINKS: dict[type, Callable[[nn.Module], list[Link]]] = {UNet: score_sde_links, NCSNpp: ncsnpp_links}
