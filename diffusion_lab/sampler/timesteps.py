"""Timesteps given by the user: explicit times, or numbers of levels per section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess

Unit = Literal["t", "sigma", "level"]
"""Unit of times: t in (0, 1], EDM's sigma (sigma / alpha), or a level 1, ..., N of a discrete process."""


def explicit(process: NoiseProcess, times: Sequence[float], unit: Unit) -> Tensor:
    """The times, (S,), float64.

    Raises:
        ValueError: unless they are strictly decreasing times that the process has.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"sampler.unit={unit!r} is unknown; allowed: {', '.join(get_args(Unit))}")
    if unit == "level" and process.levels is None:
        raise ValueError("sampler.unit=level: this process has no levels; use sampler.unit=t or sigma")
    given = torch.tensor(list(times), dtype=torch.float64)
    if given.numel() == 0 or not (given.diff() < 0).all() or not (given > 0).all():
        raise ValueError(f"sampler.times must be positive and strictly decreasing, got {list(times)}")
    ends = torch.tensor([process.t_train_min, 1.0], dtype=torch.float64)
    if unit == "sigma":
        ends = (-process.log_snr(ends) / 2).exp()
    elif unit == "level":
        ends = ends * process.levels
    low, high = ends.tolist()
    if given[0] > high * (1 + 1e-9) or given[-1] < low * (1 - 1e-9):
        raise ValueError(f"sampler.times must lie between {low:.6g} and {high:.6g}, got {list(times)}")
    if unit == "sigma":
        given = process.time(-2 * given.log())
    elif unit == "level":
        given = given / process.levels
    return given.clamp(process.t_train_min, 1.0)


def sectioned(process: NoiseProcess, sections: Sequence[int]) -> Tensor:
    """The times, (S,), float64, of `sections[k]` levels, evenly spaced in the k-th of equal parts of all levels.

    `space_timesteps` of Nichol & Dhariwal 2021's program (improved-diffusion); the first part is of the least noise.

    Raises:
        ValueError: for a part that has not so many levels.
    """
    if process.levels is None:
        raise ValueError("spacing=sections chooses among discrete levels, and this process has none: use uniform")
    (size, extra), levels, start = divmod(process.levels, len(sections)), [], 1
    for k, count in enumerate(sections):
        end = start + size + (k < extra)
        if not 1 <= count <= end - start:
            raise ValueError(
                f"sampler.sections: {count} of the {end - start} levels from {start} to {end - 1} cannot be taken"
            )
        stride = (end - 1 - start) / (count - 1) if count > 1 else 1
        levels += [start + round(i * stride) for i in range(count)]
        start = end
    return torch.tensor(levels[::-1], dtype=torch.float64) / process.levels


def signal_left(process: NoiseProcess, times: Tensor, latest: float | None) -> str | None:
    """A warning if timesteps start where some signal is left, although x starts as pure noise; else None.

    Args:
        latest: the time at which the sampler might start; None if its times are given.
    """
    alpha, sigma = (k.item() for k in process.alpha_sigma(times[0]))
    if alpha < 0.05 * sigma:
        return None
    later = latest is not None and times[0].item() < latest
    remedy = (
        f"sampler.spacing=trailing starts at t = {latest:.3g}" if later else "the schedule has no more noise than this"
    )
    return (
        f"the first of the sampler's {len(times)} times, t = {times[0]:.3g}, keeps alpha = {alpha:.2g} of the "
        f"signal, but sampling starts from noise alone: {remedy} (Lin et al. 2023)"
    )
