"""Checks of sizes and options of networks, with one-line errors."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen
from torch import Tensor

from diffusion_lab.ranges import Count

Multipliers = Annotated[tuple[Count, ...], MinLen(1)]
"""Channels of each level as multiples of the first one's."""


def check_resolutions(image_size: int, levels: int, attention: tuple[int, ...]) -> None:
    """Raise ValueError unless the image can be halved levels - 1 times and all attention resolutions exist."""
    if image_size % 2 ** (levels - 1):
        raise ValueError(
            f"image_size={image_size} cannot be halved {levels - 1} times, as {levels} multipliers require: "
            f"pad the images to a multiple of {2 ** (levels - 1)}, or use fewer multipliers"
        )
    sizes = [image_size // 2**level for level in range(levels)]
    if missing := sorted(set(attention) - set(sizes)):
        raise ValueError(
            f"attention={missing}: the network has no such resolution; with image_size={image_size} "
            f"and {levels} multipliers choose from {sizes}"
        )


def check_input(x: Tensor, channels: int, levels: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W), with H and W divisible by 2^(levels - 1)."""
    divisor = 2 ** (levels - 1)
    if x.dim() != 4 or x.shape[1] != channels or any(n % divisor for n in x.shape[2:]):
        raise ValueError(
            f"input of shape {tuple(x.shape)}: the network needs (batch, {channels}, height, width), "
            f"height and width divisible by {divisor}"
        )
