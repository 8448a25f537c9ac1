"""The memory of this machine and of this process."""

from __future__ import annotations

import ctypes
import math
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # malloc.h


def memory_of_machine() -> float:
    """Return the memory of this machine in bytes; infinity if unknown."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next step, and return whether it does.

    By default glibc returns large blocks to the kernel when they are freed. Each step allocates the same tensors again,
    and the kernel has to supply and clear their pages: 10 % of a training step of DDPM's U-Net on two cores. See
    mallopt(3); other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 2**26}
    return all([mallopt(key, value) == 1 for key, value in settings.items()])
