"""The memory of this machine."""

from __future__ import annotations

import math
import os


def memory_of_machine() -> float:
    """Return the memory of this machine in bytes; infinity if unknown."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
