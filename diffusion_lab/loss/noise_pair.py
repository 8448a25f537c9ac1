"""Laws of the pairs of noise levels r < t, in units of n = sigma / alpha, at which a consistency loss compares a model.

They depend on the number k of updates of the weights so far.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from diffusion_lab.noise import Generators, draw_each
from diffusion_lab.ranges import Count, Finite, NonNegative, Positive, check_fields

Growth = Literal["square_root", "doubling"]
Levels = Literal["uniform", "lognormal"]


def square_root(k: int, total: int, first: int, last: int) -> int:
    """Intervals that grow as the square root of k; Song et al. 2023, Appendix C, as in the authors' program."""
    return max(math.ceil(math.sqrt(k / total * ((last + 1) ** 2 - first**2) + first**2) - 1), 1)


def doubling(k: int, total: int, first: int, last: int) -> int:
    """Intervals that double from `first` to `last` in equal parts of the training; Song & Dhariwal 2023, Eq. 18."""
    part = max(math.floor(total / (math.log2(last / first) + 1)), 1)
    return min(first * 2 ** min(k // part, 64), last)


GROWTH: dict[str, Callable[[int, int, int, int], int]] = {"square_root": square_root, "doubling": doubling}
"""(k, total_steps, first, last) -> number of intervals after k of `total_steps` updates."""


class NoisePairs(ABC):
    """Draws pairs of noise levels."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def sample(self, k: int, top: float, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """(t, r), each (count,), float64 on the CPU, with 0 <= r < t <= top, the largest noise level of the process."""

    @abstractmethod
    def refinement(self, k: int) -> float:
        """By which factor the pairs are closer after k updates than at the start."""


def _quantiles(count: int, generator: Generators) -> Tensor:
    """Uniform numbers (count,), float64 on the CPU."""

    def sample(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        place = device if generator is None else generator.device
        return torch.rand(count, generator=generator, device=place).double().cpu()

    return draw_each(sample, count, torch.device("cpu"), generator)


@dataclass(frozen=True)
class KarrasPairs(NoisePairs):
    """Neighbours of a grid that is even in n^(1/rho), with its ends; Song et al. 2023, Section 3.

    Args:
        intervals: intervals of the grid, s_0: one less than the number of its noise levels N.
        last_intervals: intervals at the end of the training, s_1; None: the number does not change.
        growth: how their number grows (`GROWTH`).
        total_steps: updates in which it grows.
        levels: law of the intervals: "uniform", or "lognormal", in proportion to the probability of an interval if
            ln n ~ N(mean, std^2) (Song & Dhariwal 2023, Eq. 10).
        sigma_min: the smallest noise level.
        sigma_max: the largest; None: that of the process.
    """

    intervals: Count = 17
    last_intervals: Count | None = None
    growth: Growth = "square_root"
    total_steps: Count = 1
    levels: Levels = "uniform"
    mean: Finite = -1.1
    std: Positive = 2.0
    sigma_min: Positive = 0.002
    sigma_max: Positive | None = None
    rho: Positive = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_intervals is not None and self.last_intervals < self.intervals:
            raise ValueError(
                f"last_intervals={self.last_intervals} must be at least intervals={self.intervals}: the grid gets finer"
            )

    def intervals_at(self, k: int) -> int:
        """Number of intervals after k updates."""
        if self.last_intervals is None:
            return self.intervals
        return GROWTH[self.growth](min(k, self.total_steps), self.total_steps, self.intervals, self.last_intervals)

    def refinement(self, k: int) -> float:
        return self.intervals_at(k) / self.intervals

    def grid(self, k: int, top: float) -> Tensor:
        """The decreasing noise levels after k updates, (N,), float64."""
        high, low = ((self.sigma_max or top) ** (1 / self.rho), self.sigma_min ** (1 / self.rho))
        count = self.intervals_at(k)
        grid = (high + torch.arange(count + 1, dtype=torch.float64) / count * (low - high)) ** self.rho
        return grid.clamp(max=top)

    def sample(self, k: int, top: float, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        grid, u = self.grid(k, top), _quantiles(count, generator)
        if self.levels == "uniform":
            index = (u * (len(grid) - 1)).long()
        else:
            below = torch.special.ndtr((grid.log() - self.mean) / self.std)
            share = (below[:-1] - below[1:]).cumsum(0)
            index = torch.searchsorted(share / share[-1], u, right=True).clamp(max=len(grid) - 2)
        return grid[index], grid[index + 1]


@dataclass(frozen=True)
class TunedPairs(NoisePairs):
    """ln t ~ N(mean, std^2) and r = max(0, t (1 - n(t) / q^(stage + 1))), n(t) = 1 + k sigmoid(-b t).

    Easy consistency tuning (Geng et al. 2024, arXiv:2406.14548): at first r = 0 for most t, where the loss is that of a
    diffusion model; r approaches t with every stage.

    Args:
        q: factor by which t - r shrinks from stage to stage.
        stage_steps: updates in a stage; None: a single stage.
        mean, std: of ln t.
        k, b: of n(t).
    """

    q: Annotated[float, Gt(1)] = 2.0
    stage_steps: Count | None = None
    mean: Finite = -1.1
    std: Positive = 2.0
    k: NonNegative = 8.0
    b: Positive = 1.0

    def stage(self, k: int) -> int:
        """The stage after k updates, counted from 0."""
        return 0 if self.stage_steps is None else k // self.stage_steps

    def refinement(self, k: int) -> float:
        return self.q ** self.stage(k)

    def sample(self, k: int, top: float, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        u = _quantiles(count, generator).clamp(1e-9, 1 - 1e-9)
        t = (self.mean + self.std * torch.special.ndtri(u)).exp().clamp(max=top)
        return t, self.earlier(t, self.stage(k))

    def earlier(self, t: Tensor, stage: int) -> Tensor:
        """r, of the shape of t."""
        return (t * (1 - (1 + self.k * torch.sigmoid(-self.b * t)) / self.q ** (stage + 1))).clamp(min=0)
