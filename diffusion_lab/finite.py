"""Numbers that are none: where they are, and the error that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class NonFinite(RuntimeError):
    """A NaN or an infinity where a number must be; one line that says where, and what to do."""


def bad_items(x: Tensor) -> list[int]:
    """Which items of x (B, ...) hold a NaN or an infinity."""
    return (~x.isfinite().reshape(len(x), -1).all(1)).nonzero().flatten().tolist()


def shown(items: Sequence[object], most: int = 4) -> str:
    """The first of some things, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
