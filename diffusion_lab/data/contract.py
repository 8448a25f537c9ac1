"""Checks of the loaded data against the settings: types, shape, and range of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.finite import bad_items, shown


def check_places(data: Any, places: Sequence[str]) -> None:
    """Raise ValueError if a path in `places` is empty, for example set from an undefined shell variable."""
    if empty := [key for key in places if getattr(data, key, None) == ""]:
        raise ValueError(f"data.{empty[0]} is empty: set it to the folder of the files (. is the current folder)")


def check_shape(name: str, expected: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError naming the shape to set, or the axis that is missing or in the wrong position."""
    if shape == expected:
        return
    if expected == (1, *shape):
        advice = "give x a channel axis, x[:, None]"
    elif len(shape) == len(expected) == 3 and (shape[2], *shape[:2]) == expected:
        advice = "put the channels first, x.permute(0, 3, 1, 2)"
    else:
        advice = f"set data.shape={str(list(shape)).replace(' ', '')}"
    raise ValueError(f"{name} holds items of shape {list(shape)}, but data.shape={list(expected)}: {advice}")


def check_values(name: str, grey_levels: int | None, images: bool, parts: Sequence[Tensor]) -> tuple[bool, list[str]]:
    """Return whether the values are floats in [0, 1], and notes for the user.

    With `grey_levels` = L, values must be integers 0..L-1 of any type, or floats in [0, 1]; with None, real numbers.

    Args:
        parts: items (n, ...) of each split.

    Raises:
        ValueError: for other values, naming their range and what to do.
    """
    for part in parts:
        if part.is_complex():
            raise ValueError(f"{name} holds complex numbers: give real and imaginary part as two channels")
        if part.is_floating_point() and (bad := bad_items(part)):
            raise ValueError(f"{name}: items {shown(bad)} of {len(part)} hold NaN or infinity: leave them out")
    ranges = [(_low(part).item(), _high(part).item()) for part in parts]
    low, high = min(edge for edge, _ in ranges), max(edge for _, edge in ranges)
    kind = "floats" if any(part.is_floating_point() for part in parts) else "whole numbers"
    found = f"{name} holds {kind} from {low:g} to {high:g}"
    if grey_levels is None:
        return False, _check_reals(found, images, parts)
    top = grey_levels - 1
    unit = kind == "floats" and low >= 0 and high <= 1
    if not unit and any(0 < one <= 1 < high and len(part) > 1 for (_, one), part in zip(ranges, parts, strict=True)):
        both = " and ".join(f"{a:g} to {b:g}" for a, b in ranges)
        raise ValueError(f"{name}: the values of train and held_out range from {both}: bring both to one range")
    if not unit and not (low >= 0 and high <= top and all(map(_integral, parts))):
        halves = "return (x + 1) / 2, or " if -1 <= low < 0 and high <= 1 else ""
        raise ValueError(
            f"{found}, but grey_levels={grey_levels} requires whole numbers 0..{top} or floats in [0, 1]: {halves}"
            "set data.grey_levels=null for real numbers, which are not scaled"
        )
    if not unit and high == 1 and top > 1:
        raise ValueError(f"{found}, which is nearly black with {grey_levels} grey levels: set data.grey_levels=2")
    if unit:
        few = [part[:1000] * top for part in parts]
        even = all(((part - part.round()).abs() < 1e-2).all() for part in few)
        return True, ["floats in [0, 1], not scaled" + ("" if even else f", not only on the {grey_levels} levels")]
    return False, [f"the largest value is {high:g} of {top}"] if high < top / 2 else []


def _check_reals(found: str, images: bool, parts: Sequence[Tensor]) -> list[str]:
    if not images:
        return []
    if any(part.dtype in (torch.uint8, torch.bool) for part in parts):
        raise ValueError(f"{found}, as bytes; data.grey_levels=null requires real numbers: set data.grey_levels=256")
    spread, other = (part.to(torch.float32).std(correction=0).item() for part in parts)
    differs = f" (but {other:.3g} of the held-out items)" if not spread / 4 <= other <= 4 * spread else ""
    return [f"{found}, standard deviation {spread:.3g}{differs}"]


def _low(x: Tensor) -> Tensor:
    return x.amin() if x.dtype != torch.bool else x.all()


def _high(x: Tensor) -> Tensor:
    return x.amax() if x.dtype != torch.bool else x.any()


def _integral(x: Tensor) -> bool:
    return not x.is_floating_point() or bool((x == x.round()).all())
