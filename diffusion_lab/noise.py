"""Reproducible random numbers: one generator for a batch, or one for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def image_generators(seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return one generator per image, seeded by (seed, image index) alone.

    Image i therefore has the same noise in any batch and on any rank.
    """
    seeds = (int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]) for index in indices)
    return [torch.Generator(device).manual_seed(value >> 1) for value in seeds]  # 63 bits, as a seed is an int64


def draw(shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal noise of `shape` (B, ...) on the generator's device; raises as `stream` does."""
    return stream(shape, generator, dtype, device)()


def stream(
    shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Callable[[], Tensor]:
    """Return a function that draws new noise, like `draw`, in each call, into the same buffer.

    Raises:
        ValueError: if `generator` is a sequence of other than B generators.
    """
    if generator is None or isinstance(generator, torch.Generator):
        noise = torch.empty(*shape, dtype=dtype, device=device if generator is None else generator.device)
        parts = [(noise, generator)]
    elif len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]} images: give one per image")
    else:
        noise = torch.empty(*shape, dtype=dtype, device=generator[0].device)
        parts = list(zip(noise, generator, strict=True))
    same_device = noise.device == torch.device(device)

    def draw_noise() -> Tensor:
        for part, part_generator in parts:
            part.normal_(generator=part_generator)
        return noise if same_device else noise.to(device)

    return draw_noise


def draw_each(
    sample: Callable[[int, torch.device, torch.Generator | None], Tensor],
    count: int,
    device: torch.device,
    generator: Generators,
) -> Tensor:
    """Return `sample(count, device, generator)` (..., count), with one call per image for one generator each."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(count, device, generator)
    return torch.cat([sample(1, device, image_generator) for image_generator in generator], -1)


def states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators on the CPU and on the device."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(saved: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the states that `states` returned."""
    torch.set_rng_state(saved["cpu"].cpu())
    if device.type == "cuda" and "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"].cpu(), device)
