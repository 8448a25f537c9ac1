"""Which program's names a set of weights has: a table, one row for each layout and network of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffusion_lab.interop import ddim, diffusers, ncsn, score_sde
from diffusion_lab.interop.mapping import listed
from diffusion_lab.network import NCSNpp, RefineNet, UNet


def nothing_beside(network: nn.Module, file: Path) -> None:
    """Names and shapes tell all."""


class Layout(NamedTuple):
    """A layout of weights.

    Attributes:
        name: whose it is.
        network: our class that takes it.
        choose: what to write on the command line for one.
        mark: how a name in it begins, and in no other layout for the same network.
        convert: (network, official weights, strict) -> the network's state dict, as far as it fits unless strict.
        order: network -> official names of the trained weights, in the order of a nameless average.
        check: (network, file) refuses settings beside the file that the network does not have.
    """

    name: str
    network: type[nn.Module]
    choose: str
    mark: str
    convert: Callable[..., dict[str, Tensor]]
    order: Callable[[Any], list[str]]
    check: Callable[[Any, Path], None] = nothing_beside


LAYOUTS = (
    Layout("NCSN", RefineNet, "model=ncsn or ncsnv2", "begin_conv.", ncsn.refinenet, ncsn.trainable_order),
    Layout("ScoreSDE", NCSNpp, "network=ncsnpp or ddpmpp", "all_modules.", score_sde.ncsnpp, score_sde.trainable_order),
    Layout("ScoreSDE", UNet, "network=ddpm_score_sde", "all_modules.", score_sde.ddpm, score_sde.trainable_order),
    Layout("DDIM", UNet, "network=unet", "temb.dense.", ddim.unet, ddim.trainable_order),
    Layout(
        "diffusers",
        UNet,
        "network=unet",
        "time_embedding.",
        diffusers.unet,
        diffusers.trainable_order,
        diffusers.check_settings,
    ),
)


def recognise(network: nn.Module, names: Collection[str]) -> Layout:
    """The layout for a network of ours that weights of these names have.

    Raises ValueError, in one line, where there is none.
    """
    known = [layout for layout in LAYOUTS if any(name.startswith(layout.mark) for name in names)]
    if not known:
        programs = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        raise ValueError(f"names such as {listed(list(names))} are of none of the layouts {programs}")
    for layout in known:
        if layout.network is type(network):
            return layout
    choices = ", or ".join(layout.choose for layout in known)
    raise ValueError(f"these are weights of {known[0].name}, no {type(network).__name__}'s: add {choices}")
