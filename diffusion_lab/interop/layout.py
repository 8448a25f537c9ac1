"""Table of the layouts of weights of other programs, with one row per layout and network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffusion_lab.interop import ddim, diffusers, diffusers_adm, diffusers_ncsnpp, edm, ncsn, openai, score_sde
from diffusion_lab.interop.mapping import listed
from diffusion_lab.network import ADMUNet, NCSNpp, NoisyClassifier, RefineNet, UNet


def no_check(network: nn.Module, file: Path) -> None:
    """Names and shapes determine all settings."""


CLASSES = {"map_label.weight": 1, "label_emb.weight": 0, "out.2.c_proj.weight": 0}
"""Official names of the weights of class labels or logits -> the dimension whose size is the number of classes."""


class Layout(NamedTuple):
    """A layout of weights.

    Attributes:
        name: the program.
        network: our class of the network.
        choose: overrides that select the network.
        mark: prefix of a name that occurs in this layout, but in no other of the same network.
        convert: (network, official weights, strict) -> the network's state dict; partial unless strict.
        order: network -> official names of the trained weights, in the order of an EMA that is a list.
        check: (network, file) raises ValueError if the settings next to the file differ from the network's.
    """

    name: str
    network: type[nn.Module]
    choose: str
    mark: str
    convert: Callable[..., dict[str, Tensor]]
    order: Callable[[Any], list[str]]
    check: Callable[[Any, Path], None] = no_check


LAYOUTS = (
    Layout("NCSN", RefineNet, "model=ncsn or ncsnv2", "begin_conv.", ncsn.refinenet, ncsn.trainable_order),
    Layout("ScoreSDE", NCSNpp, "network=ncsnpp or ddpmpp", "all_modules.", score_sde.ncsnpp, score_sde.trainable_order),
    Layout("ScoreSDE", UNet, "network=ddpm_score_sde", "all_modules.", score_sde.ddpm, score_sde.trainable_order),
    Layout("EDM", NCSNpp, "network=edm_ddpmpp or edm_ncsnpp", "map_layer0.", edm.song_unet, edm.trainable_order),
    Layout("EDM", ADMUNet, "network=adm", "map_layer0.", edm.dhariwal_unet, edm.dhariwal_order),
    Layout("DDIM", UNet, "network=unet", "temb.dense.", ddim.unet, ddim.trainable_order),
    Layout("ADM", ADMUNet, "model=iddpm or adm", "output_blocks.", openai.unet, openai.trainable_order),
    Layout("ADM", NoisyClassifier, "model=classifier", "out.2.c_proj.", openai.classifier, openai.trainable_order),
    Layout(
        "diffusers",
        UNet,
        "network=unet",
        "time_embedding.",
        diffusers.unet,
        diffusers.trainable_order,
        diffusers.check_settings,
    ),
    Layout(
        "diffusers",
        NCSNpp,
        "network=ncsnpp with both pyramids",
        "time_embedding.",
        diffusers_ncsnpp.unet,
        diffusers_ncsnpp.trainable_order,
        diffusers_ncsnpp.check_settings,
    ),
    Layout(
        "diffusers",
        ADMUNet,
        "model=iddpm or adm",
        "time_embedding.",
        diffusers_adm.unet,
        diffusers_adm.trainable_order,
        diffusers_adm.check_settings,
    ),
)


def recognise(network: nn.Module, names: Collection[str]) -> Layout:
    """Return the layout of weights with these names for a network.

    Raises ValueError if there is none.
    """
    known = [layout for layout in LAYOUTS if any(name.startswith(layout.mark) for name in names)]
    if not known:
        programs = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        raise ValueError(f"names such as {listed(list(names))} match none of the layouts {programs}")
    for layout in known:
        if layout.network is type(network):
            return layout
    choices = ", or ".join(layout.choose for layout in known)
    raise ValueError(f"these are weights of {known[0].name}, not of a {type(network).__name__}: add {choices}")
