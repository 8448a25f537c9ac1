"""Weights of the official PyTorch version of ScoreSDE (Song et al. 2021), without the prefix "module.".

Its networks number their blocks in order of execution, "all_modules.0", "all_modules.1", ...; the buffer "sigmas" is
ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from diffusion_lab.interop.mapping import Link, Parts, Source, convert, links
from diffusion_lab.interop.unet import RESIDUAL, SCORE_SDE, score_sde_links
from diffusion_lab.network import NCSNpp, UNet

FREQUENCIES = "time.waves.frequencies"


def ddpm(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of the official "ddpm" to one of `UNet(up_attention="last", pointwise_scale=0.1)`.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(network, official, score_sde_links(network), ignored=["sigmas"], strict=strict)


def ncsnpp(network: NCSNpp, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of the official "ncsnpp" with the same settings to one of `NCSNpp`.

    The unused embeddings of an official network with conditional=False are dropped.
    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(network, official, ncsnpp_links(network), ignored=["sigmas"], strict=strict)


def trainable_order(network: nn.Module) -> list[str]:
    """Return the official names of the trained weights, in the order of the list in its EMA."""
    return [link.theirs for link in LINKS[type(network)](network) if link.ours != FREQUENCIES]


def mirrored(weight: Tensor) -> Tensor:
    """Convert a kernel for the transposed convolution: the official one is (out, in) and mirrored before use."""
    return weight.transpose(0, 1).flip(2, 3)


PARTS: Parts = {
    **SCORE_SDE,
    "ddpm": SCORE_SDE["residual"],
    "biggan": {**RESIDUAL, ".shortcut": (Source(".Conv_2"),)},
    "fir_down": {".conv": (Source(".Conv2d_0"),)},
    "fir_up": {".conv": (Source(".Conv2d_0", transform=mirrored),)},
}


def ncsnpp_links(network: NCSNpp) -> list[Link]:
    """Return a link for each official tensor, in official order; unused ones have a name that our network lacks."""
    first = [Link(FREQUENCIES, "all_modules.0.W")] if network.embedding == "fourier" else []
    blocks = list(walk(network))
    numbered = ((kind, ours, f"all_modules.{number}") for number, (kind, ours) in enumerate(blocks, len(first)))
    shifts = {f"{ours}.shift.weight" for kind, ours in blocks if kind == network.resblock_type}
    return first + list(links(numbered, PARTS, network.state_dict().keys() | shifts))


def walk(network: NCSNpp) -> Iterator[tuple[str, str]]:
    """Yield every official block except the frequencies in order of execution, as (type, our name)."""
    block, present = network.resblock_type, network.state_dict().keys()
    smaller, larger = ("fir_down", "fir_up") if network.fir else ("resample", "resample")

    def stages(name: str, count: int) -> Iterator[tuple[str, str]]:
        for i in range(count):
            yield block, f"{name}.{i}.residual"
            if f"{name}.{i}.attention.norm.weight" in present:
                yield "attention", f"{name}.{i}.attention"

    def resample(name: str, convolution: str) -> tuple[str, str]:
        return (block, f"{name}.residual") if block == "biggan" else (convolution, f"{name}.0")

    def head(name: str) -> list[tuple[str, str]]:
        return [("layer", f"{name}.0"), ("layer", f"{name}.2")]

    if network.conditional:
        yield from [("layer", "time.dense1"), ("layer", "time.dense2")]
    yield "layer", "conv_in"
    for level, down in enumerate(network.down):
        if level > 0:
            yield resample(f"downsample.{level - 1}", smaller)
            inputs = {"none": [], "input_skip": [("resample", "")], "residual": [(smaller, ".resample")]}
            yield from ((kind, f"input_pyramid.{level - 1}{part}") for kind, part in inputs[network.progressive_input])
        yield from stages(f"down.{level}", len(down))
    yield from stages("middle", 2)
    last = len(network.up) - 1
    for index, up in enumerate(network.up):
        yield from stages(f"up.{index}", len(up))
        heads, sums = head(f"output_pyramid.{index}.head"), [(larger, f"output_pyramid.{index}.resample")]
        yield from {"none": [], "output_skip": heads, "residual": sums if index else heads}[network.progressive]
        yield from [resample(f"upsample.{index}", larger)] if index < last else []
    yield from head("conv_out") if network.progressive != "output_skip" else []


LINKS: dict[type, Callable[[nn.Module], list[Link]]] = {UNet: score_sde_links, NCSNpp: ncsnpp_links}
