"""Sizes that must fit together, each refused in one line before anything is built or computed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def check_levels(multipliers: tuple[int, ...], blocks: int) -> None:
    """Raise ValueError where a network would have no level or no block."""
    if not multipliers or min(multipliers) < 1 or blocks < 1:
        raise ValueError(
            f"multipliers={list(multipliers)}, blocks={blocks}: "
            f"give at least one multiplier, and each number at least 1"
        )


def check_resolutions(image_size: int, levels: int, attention: tuple[int, ...]) -> None:
    """Raise ValueError where the image cannot be halved so often, or no level has a resolution asked for."""
    if image_size % 2 ** (levels - 1):
        raise ValueError(
            f"image_size={image_size} cannot be halved {levels - 1} times, as {levels} multipliers ask: "
            f"pad the images to a multiple of {2 ** (levels - 1)}, or give fewer multipliers"
        )
    sizes = [image_size // 2**level for level in range(levels)]
    if missing := sorted(set(attention) - set(sizes)):
        raise ValueError(
            f"attention={missing}: the network has no such resolution; at image_size={image_size} "
            f"with {levels} multipliers choose from {sizes}"
        )


def check_choice(option: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError where an option has a value that is not allowed."""
    if value not in (names := list(allowed)):
        first, last = ", ".join(map(repr, names[:-1])), repr(names[-1])
        raise ValueError(f"{option}={value!r}: choose {first} or {last}")


def check_input(x: Tensor, channels: int, levels: int) -> None:
    """Raise ValueError where an input is no batch of images of these channels that can be halved levels - 1 times."""
    divisor = 2 ** (levels - 1)
    if x.dim() != 4 or x.shape[1] != channels or any(n % divisor for n in x.shape[2:]):
        raise ValueError(
            f"input of shape {tuple(x.shape)}: the network takes (batch, {channels}, height, width), "
            f"height and width divisible by {divisor}"
        )
