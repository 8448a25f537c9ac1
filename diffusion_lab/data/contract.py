"""What data promise, held against what they give: grey levels as whole numbers or floats in [0, 1], or real numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.finite import bad_items, shown

TYPES = {"int": (Integral, "a whole number"), "float": (Real, "a number"), "bool": (bool, "true or false"),
    "str": ((str, PathLike), "text"), "None": (type(None), "null"),
}  # fmt: skip
"""Types that a setting may have, by the words of its annotation, and what they are called."""


def check_fields(data: Any, places: Sequence[str]) -> None:
    """Raise ValueError naming the first setting of a data set whose type is not the one that its field states.

    Nor may the keys `places`, which say where files lie, be empty, as an unset variable of the shell leaves them.
    """
    if empty := [key for key in places if getattr(data, key, None) == ""]:
        raise ValueError(f"data.{empty[0]} is empty: say where the files are (. is the current folder)")
    if not isinstance(data.shape, Iterable) or not all(isinstance(n, Integral) for n in data.shape):
        raise ValueError(f"data.shape={data.shape!r} must be [channels,height,width] or [2]")
    for field in fields(data):
        value, words = getattr(data, field.name), str(getattr(field.type, "__name__", field.type)).split(" | ")
        if not set(words) <= set(TYPES) or (isinstance(value, bool) and "bool" in words):
            continue
        if isinstance(value, bool) or not any(isinstance(value, TYPES[word][0]) for word in words):
            raise ValueError(f"data.{field.name}={value!r} must be {' or '.join(TYPES[word][1] for word in words)}")


def check_shape(name: str, promised: tuple[int, ...], got: tuple[int, ...]) -> None:
    """Raise ValueError naming the shape to set, or the axis that is missing or out of place."""
    if got == promised:
        return
    said = f"{name} holds items of shape {list(got)}, but data.shape={list(promised)}: "
    if promised == (1, *got):
        raise ValueError(said + "give x a channel axis, x[:, None]")
    if len(got) == len(promised) == 3 and (got[2], *got[:2]) == promised:
        raise ValueError(said + "put the channels first, x.permute(0, 3, 1, 2)")
    raise ValueError(said + f"set data.shape={str(list(got)).replace(' ', '')}")


def check_values(name: str, grey_levels: int | None, images: bool, parts: Sequence[Tensor]) -> tuple[bool, list[str]]:
    """Whether floats are in [0, 1] already, and what a user should know; `parts` (n, ...) are of the two splits.

    With `grey_levels` = L values are whole numbers 0..L-1 of any type, or floats in [0, 1]; without, real numbers.

    Raises ValueError for anything else, naming the range that was found and what to do.
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
        raise ValueError(f"{name}: the values of train and held_out go from {both}: bring both to one range")
    if not unit and not (low >= 0 and high <= top and all(map(_whole, parts))):
        halves = "give (x + 1) / 2, or " if -1 <= low < 0 and high <= 1 else ""
        raise ValueError(
            f"{found}, but grey_levels={grey_levels} promises whole numbers 0..{top} or floats in [0, 1]: {halves}"
            "set data.grey_levels=null for values that are no grey levels, which are then trained on as they are"
        )
    if not unit and high == 1 and top > 1:
        raise ValueError(f"{found}, which would be nearly black on {grey_levels} grey levels: set data.grey_levels=2")
    if unit:
        few = [part[:1000] * top for part in parts]
        even = all(((part - part.round()).abs() < 1e-2).all() for part in few)
        return True, ["floats in [0, 1] as they are" + ("" if even else f", not only on the {grey_levels} levels")]
    return False, [f"the brightest value is {high:g} of {top}"] if high < top / 2 else []


def _check_reals(found: str, images: bool, parts: Sequence[Tensor]) -> list[str]:
    if not images:
        return []
    if any(part.dtype in (torch.uint8, torch.bool) for part in parts):
        raise ValueError(f"{found}, as bytes; data.grey_levels=null promises real numbers: set data.grey_levels=256")
    spread, other = (part.to(torch.float32).std(correction=0).item() for part in parts)
    differs = f" (but {other:.3g} of the held-out items)" if not spread / 4 <= other <= 4 * spread else ""
    return [f"{found}, standard deviation {spread:.3g}{differs}"]


def _low(x: Tensor) -> Tensor:
    return x.amin() if x.dtype != torch.bool else x.all()


def _high(x: Tensor) -> Tensor:
    return x.amax() if x.dtype != torch.bool else x.any()


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() or bool((x == x.round()).all())
