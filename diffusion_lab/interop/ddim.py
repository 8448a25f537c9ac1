"""Weights of the official DDIM (Song, Meng & Ermon 2021), and of DDPM in its layout, without the prefix "module."."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffusion_lab.interop.mapping import convert
from diffusion_lab.interop.unet import ddim_links
from diffusion_lab.network import UNet


def unet(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """Convert the state dict of the official "Model" with the same settings to one of `UNet`.

    Raises ValueError if weights are missing, unexpected or of another shape.
    """
    return convert(network, official, ddim_links(network), strict=strict)


def trainable_order(network: UNet) -> list[str]:
    """Return the official names of the trained weights, in order of execution."""
    return [link.theirs for link in ddim_links(network)]
