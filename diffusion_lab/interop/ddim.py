"""Weights of DDIM's program (Song, Meng & Ermon 2021), and of DDPM's in its layout, without the "module."."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffusion_lab.interop.mapping import convert
from diffusion_lab.interop.unet import ddim_links
from diffusion_lab.network import UNet


def unet(network: UNet, official: Mapping[str, Tensor], strict: bool = True) -> dict[str, Tensor]:
    """State dict of `UNet` from that of the official "Model" of the same settings.

    Raises ValueError, in one line, where weights are missing, left over or of another shape.
    """
    return convert(network, official, ddim_links(network), strict=strict)


def trainable_order(network: UNet) -> list[str]:
    """Official names of the trained weights, in order of execution."""
    return [link.theirs for link in ddim_links(network)]
