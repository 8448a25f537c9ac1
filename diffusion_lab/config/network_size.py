"""Check whether a network can take images of a size; if not, suggest settings or sizes that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def network_takes_size(config: Mapping[str, Any]) -> str | None:
    """Why the network cannot take the images of the data, with what would fit; None if it can."""
    shape = (config.get("data") or {}).get("shape") or ()
    for path, node in networks(config.get("network"), "network"):
        size, multipliers = node.get("image_size"), node.get("multipliers")
        if not isinstance(size, int) or not multipliers:
            continue
        height, width = shape[1:] if len(shape) == 3 else (size, size)
        dilations, attention = node.get("dilations"), node.get("attention") or []
        halvings = len(multipliers) - 1 if dilations is None else sum(d == 1 for d in dilations[1:])
        possible = trailing_zeros(height | width)
        if halvings > possible:
            key, value = ("multipliers", multipliers) if dilations is None else ("dilations", dilations)
            fewer = multipliers[: possible + 1]
            ways = [f"{path}.multipliers={plain(fewer)}{moved(path, height, possible, attention)}"] * (
                dilations is None
            )
            for near in sizes(height, width, 2**halvings):
                ways.append(f"data.shape={plain([*shape[:1], *near])}{moved(path, near[0], halvings, attention)}")
            times = "once" if halvings == 1 else f"{halvings} times"
            return (
                f"{path}.{key}={plain(value)} halves images {times}, which {height}x{width} does not allow (a multiple "
                f"of {2**halvings} is needed): use {', or '.join(ways)}"
            )
        exist = [height // 2**i for i in range(halvings + 1)]
        if lacking := [r for r in attention if r not in exist]:
            message = (
                f"{path}.attention={plain(attention)} contains resolution {lacking[0]}, but there are only {exist}"
            )
            return f"{message}: use {path}.attention={plain(nearest(attention, exist))}"
    return None


def networks(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A network's node, and those of the networks nested in it."""
    if isinstance(node, Mapping):
        yield path, node
        yield from networks(node.get("network"), f"{path}.network")


def trailing_zeros(n: int) -> int:
    """How often n > 0 can be halved without remainder."""
    return (n & -n).bit_length() - 1


def moved(path: str, height: int, halvings: int, attention: Sequence[int]) -> str:
    """The override that moves attention to the nearest existing resolutions; empty if they all exist."""
    exist = [height // 2**i for i in range(halvings + 1)]
    return f" {path}.attention={plain(nearest(attention, exist))}" if set(attention) - set(exist) else ""


def nearest(attention: Sequence[int], exist: Sequence[int]) -> list[int]:
    """For each resolution the nearest existing one, unless it is more than twice or less than half of it."""
    close = [min(exist, key=lambda e: abs(e - r)) for r in attention]
    fits = [e for e, r in zip(close, attention, strict=True) if r <= 2 * e <= 4 * r]
    return sorted(set(fits), reverse=True)


def sizes(height: int, width: int, unit: int) -> list[tuple[int, int]]:
    """The next smaller and the next larger size whose sides are multiples of `unit`."""
    both = [tuple((n + up) // unit * unit for n in (height, width)) for up in (0, unit - 1)]
    return [size for size in both if min(size)]


def plain(numbers: Sequence[int]) -> str:
    """A list as written in an override."""
    return str(list(numbers)).replace(" ", "")
