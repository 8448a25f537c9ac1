"""Detecting NaN and infinity, and the error that reports them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class NonFinite(RuntimeError):
    """A NaN or an infinity was found; the message says in one line where, and what to do."""


def bad_items(x: Tensor) -> list[int]:
    """Indices of the items of x (B, ...) that contain a NaN or an infinity."""
    return (~x.isfinite().reshape(len(x), -1).all(1)).nonzero().flatten().tolist()


def shown(items: Sequence[object], most: int = 4) -> str:
    """Format a list for a message: the first `most` items, and the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
