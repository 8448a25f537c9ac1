"""What data promise, held against what they give: grey levels as whole numbers or floats in [0, 1], or real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lab.finite import bad_items, shown


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
    low, high = (reduce(edge.item() for edge in map(extreme, parts)) for reduce, extreme in ((min, _low), (max, _high)))
    kind = "floats" if any(part.is_floating_point() for part in parts) else "whole numbers"
    found = f"{name} holds {kind} from {low:g} to {high:g}"
    if grey_levels is None:
        return False, _check_reals(found, images, parts)
    top = grey_levels - 1
    unit = kind == "floats" and low >= 0 and high <= 1
    if not unit and not (low >= 0 and high <= top and all(map(_whole, parts))):
        halves = "give (x + 1) / 2; " if -1 <= low < 0 and high <= 1 else ""
        raise ValueError(
            f"{found}, but grey_levels={grey_levels} promises whole numbers 0..{top} or floats in [0, 1]: {halves}"
            "or set grey_levels=null for values that are no grey levels, which are then trained on as they are"
        )
    if not unit and high == 1 and top > 1:
        raise ValueError(f"{found}, which would be nearly black on {grey_levels} grey levels: set grey_levels=2")
    if unit:
        few = [part[:1000] * top for part in parts]
        even = all(((part - part.round()).abs() < 1e-2).all() for part in few)
        return True, ["floats in [0, 1] as they are" + ("" if even else f", not only on the {grey_levels} levels")]
    return False, [f"the brightest value is {high:g} of {top}"] if high < top / 2 else []


def _check_reals(found: str, images: bool, parts: Sequence[Tensor]) -> list[str]:
    if not images:
        return []
    if any(part.dtype in (torch.uint8, torch.bool) for part in parts):
        raise ValueError(f"{found}, as bytes, but grey_levels=null promises real numbers: set grey_levels=256")
    return [f"{found}, standard deviation {parts[0].to(torch.float32).std():.3g}"]


def _low(x: Tensor) -> Tensor:
    return x.amin() if x.dtype != torch.bool else x.all()


def _high(x: Tensor) -> Tensor:
    return x.amax() if x.dtype != torch.bool else x.any()


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() or bool((x == x.round()).all())
