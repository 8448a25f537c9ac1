"""Check that a training batch can be split over the devices and fits into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_lab.config.environment import local_ranks
from diffusion_lab.memory import memory_of_machine


def ranks(config: Mapping[str, Any]) -> int | None:
    """Number of devices of a training; None where it depends on the machine."""
    trainer = config.get("trainer") or {}
    count = local_ranks(trainer)
    return count and count * (trainer.get("num_nodes") or 1)


def batch_divides(config: Mapping[str, Any]) -> str | None:
    """Why a batch cannot be split evenly, or None."""
    world, batch = ranks(config), (config.get("data") or {}).get("batch_size")
    if world is None or not isinstance(batch, int) or batch % world == 0:
        return None
    return f"data.batch_size={batch} cannot be split evenly over {world} devices: use a multiple of {world}"


def batch_fits_memory(config: Mapping[str, Any]) -> str | None:
    """Why the float32 values of one device's batch alone exceed this machine's memory, or None."""
    data = config.get("data") or {}
    shape, batch = data.get("shape") or [], data.get("batch_size", 1)
    if not all(isinstance(number, int) for number in (*shape, batch)):
        return None
    size = 4 * math.prod(shape) * math.ceil(batch / (ranks(config) or 1))
    if size <= (memory := memory_of_machine()):
        return None
    return (
        f"data.shape={list(shape)} with data.batch_size={batch}: a batch takes {size / 2**30:,.0f} GiB, and "
        f"this machine has {memory / 2**30:,.0f} GiB of memory: use a smaller shape or batch"
    )
