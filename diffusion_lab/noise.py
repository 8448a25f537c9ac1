"""Where noise comes from when it must be reproducible: one generator for a batch, or one for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def image_generators(seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator for each image, a function of (seed, index of the image) alone.

    So image i is driven by the same noise whatever the batch it is drawn in and the device it is dealt to.
    """
    words = (int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]) for index in indices)
    return [torch.Generator(device).manual_seed(word >> 1) for word in words]  # 63 bits: MT19937 takes an int64


def draw(shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise of `shape` (B, ...), drawn where the generator lives; raises as `stream` does."""
    return stream(shape, generator, dtype, device)()


def stream(
    shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Callable[[], Tensor]:
    """What gives new noise, like that of `draw`, whenever it is called, and always in the same memory.

    Raises:
        ValueError: if there is a generator for each image but not B of them.
    """
    if generator is None or isinstance(generator, torch.Generator):
        noise = torch.empty(*shape, dtype=dtype, device=device if generator is None else generator.device)
        parts = [(noise, generator)]
    elif len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]} images: give one for each image")
    else:
        noise = torch.empty(*shape, dtype=dtype, device=generator[0].device)
        parts = list(zip(noise, generator, strict=True))
    at_home = noise.device == torch.device(device)

    def fresh() -> Tensor:
        for part, own in parts:
            part.normal_(generator=own)
        return noise if at_home else noise.to(device)

    return fresh


def draw_each(
    sample: Callable[[int, torch.device, torch.Generator | None], Tensor],
    count: int,
    device: torch.device,
    generator: Generators,
) -> Tensor:
    """`sample(count, device, generator)`, (..., count); a generator for each image gives each what it draws alone."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(count, device, generator)
    return torch.cat([sample(1, device, own) for own in generator], -1)
