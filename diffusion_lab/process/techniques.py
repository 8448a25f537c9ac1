"""The five techniques of NCSNv2 for choosing noise levels and sampler for a data set (Song & Ermon 2020).

1. The largest sigma is the largest distance between two data points: `largest_distance`.
2. The levels are geometric, with a ratio at which neighbours overlap by 0.5: `ratio`, `number_of_levels`.
3. The network is not conditioned on the level; its output is divided by sigma: output="scaled_score",
   c_noise="nothing" in diffusion_lab/parameterization.py.
4. The step size of annealed Langevin dynamics keeps the variance at each level's sigma^2: `step_size`.
5. Sampling uses EMA weights: diffusion_lab/callback/ema.py.
`advise` computes all these numbers for a data set.  gamma is sigma_{i-1}/sigma_i > 1 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Advice:
    """Settings for a data set by techniques 1, 2 and 4."""

    sigma_max: float
    """Largest noise level."""
    sigma_min: float
    """Smallest noise level, as given."""
    levels: int
    """Number of geometric noise levels, rounded up, so that neighbours overlap by at least the target."""
    gamma: float
    """Ratio of neighbouring levels; slightly below `ratio` of the target because the number of levels is rounded."""
    steps: int
    """Langevin steps at each level, as given."""
    step_size: float
    """epsilon; the step at level i is epsilon sigma_i^2 / sigma_min^2."""


def advise(data: Tensor, sigma_min: float = 0.01, steps: int = 5, target: float = 0.5, block: int = 512) -> Advice:
    """Noise levels and step size for a data set (N, ...), in the units of the data.

    The published settings are sigma_min = 0.01 and 3 to 5 steps for images in [0, 1].
    Raises ValueError as `largest_distance`, `number_of_levels` and `step_size` do.
    """
    sigma_max = largest_distance(data, block)
    levels = max(2, math.ceil(number_of_levels(sigma_min, sigma_max, data[0].numel(), target)))
    gamma = math.exp(math.log(sigma_max / sigma_min) / (levels - 1))
    return Advice(sigma_max, sigma_min, levels, gamma, steps, step_size(gamma, steps, sigma_min))


def largest_distance(data: Tensor, block: int = 512) -> float:
    """Technique 1: the largest Euclidean distance between two points of a data set (N, ...), computed in float64.

    Points are compared in blocks, those far from the mean m first: since |a - b| <= |a - m| + |b - m|, most pairs can
    be skipped.  Needs memory for a few copies of `block` points and of their distances, on the data's device.
    Raises ValueError for less than two points, values that are not finite, or a block below 1.
    """
    if data.dim() < 2 or len(data) < 2 or block < 1:
        raise ValueError(f"data of shape {tuple(data.shape)}, block={block}: give at least two points and block >= 1")
    # MPS has no float64.
    dtype = torch.float32 if data.device.type == "mps" else torch.float64
    data, starts = data.detach().flatten(1), range(0, len(data), block)
    mean = sum(data[start : start + block].to(dtype).sum(0) for start in starts) / len(data)
    radius = torch.cat([(data[start : start + block].to(dtype) - mean).norm(dim=1) for start in starts])
    if not radius.isfinite().all():
        raise ValueError("the data contain NaN or infinity: remove those points")
    radius, order = radius.sort(descending=True)

    def centred(start: int) -> Tensor:
        return data[order[start : start + block]].to(dtype) - mean

    largest = 0.0
    for i in starts:
        if 2 * radius[i] <= largest:
            break
        points = centred(i)
        for j in starts[i // block :]:
            if radius[i] + radius[j] <= largest:
                break
            largest = max(largest, farthest(points, centred(j)))
    return largest


def farthest(a: Tensor, b: Tensor) -> float:
    """Largest distance between a row of `a` and one of `b`."""
    squares = torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)
    i, j = divmod(squares.argmax().item(), len(b))
    return (a[i] - b[j]).norm().item()


def overlap(gamma: float, dimensions: int) -> float:
    """Technique 2: overlap of the noise of neighbouring levels, sigma_{i-1} = gamma sigma_i.

    Phi(sqrt(2 D)(gamma - 1) + 3 gamma) - Phi(sqrt(2 D)(gamma - 1) - 3 gamma)

    (Song & Ermon 2020, Section 3.2), with Phi the standard normal CDF.  The norm of a level's noise is distributed as
    about N(sqrt(D) sigma_i, sigma_i^2 / 2); the overlap is the probability that it lies within three standard
    deviations of the mean norm of the neighbouring level.
    """
    shift = math.sqrt(2 * dimensions) * (gamma - 1)
    return (math.erfc((shift - 3 * gamma) / math.sqrt(2)) - math.erfc((shift + 3 * gamma) / math.sqrt(2))) / 2


def ratio(dimensions: int, target: float = 0.5) -> float:
    """Technique 2: the ratio gamma > 1 of neighbouring levels whose `overlap` is `target`, in D dimensions.

    Raises ValueError below five dimensions, where the overlap does not decrease with gamma, and for a target that is
    not between 0 and 0.997, the overlap at gamma = 1.
    """
    if dimensions < 5:
        raise ValueError(f"dimensions={dimensions}: the overlap decreases with the ratio only in 5 or more dimensions")
    if not 0 < target < overlap(1.0, dimensions):
        raise ValueError(f"target={target}: must be between 0 and {overlap(1.0, dimensions):.3f}")
    high = 2.0
    while overlap(high, dimensions) > target:
        high *= 2
    return root(lambda gamma: target - overlap(gamma, dimensions), 1.0, high)


def number_of_levels(sigma_min: float, sigma_max: float, dimensions: int, target: float = 0.5) -> float:
    """Technique 2: number of geometric levels from sigma_max to sigma_min whose neighbours overlap by `target`.

    L = 1 + log(sigma_max / sigma_min) / log(gamma),   gamma = ratio(dimensions, target),   not rounded

    The published numbers of levels correspond to a target of 0.567.
    Raises ValueError unless 0 < sigma_min < sigma_max, and as `ratio` does.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: give 0 < sigma_min < sigma_max")
    return 1 + math.log(sigma_max / sigma_min) / math.log(ratio(dimensions, target))


def variance_ratio(step_size: float, gamma: float, steps: int, sigma_min: float = 0.01) -> float:
    """Technique 4: variance after a level's Langevin steps over sigma_i^2, for data concentrated at one point.

    (1 - q)^(2 T) (gamma^2 - 2 / (2 - q)) + 2 / (2 - q),   q = epsilon / sigma_min^2

    for T `steps` of size epsilon sigma_i^2 / sigma_min^2, started from the variance of the previous level (Song & Ermon
    2020, Proposition 3).  It is the same at every level, and always greater than 1.
    Raises ValueError if gamma <= 1, steps < 1, or q is outside (0, 2), where the steps diverge.
    """
    check_chain(gamma, steps, sigma_min)
    q = step_size / sigma_min**2
    if not 0 < q < 2:
        raise ValueError(f"step_size={step_size}: must be between 0 and 2 sigma_min^2 for Langevin dynamics")
    stationary = 2 / (2 - q)
    return (1 - q) ** (2 * steps) * (gamma**2 - stationary) + stationary


def step_size(gamma: float, steps: int, sigma_min: float = 0.01) -> float:
    """Technique 4: the epsilon that minimises `variance_ratio` for a number of steps at each level.

    It is the zero of the derivative with respect to q in (0, 1).  Raises ValueError if gamma <= 1, steps < 1 or
    sigma_min <= 0.
    """
    check_chain(gamma, steps, sigma_min)
    excess = (gamma - 1) * (gamma + 1)

    def slope(q: float) -> float:
        decay = math.log1p(-q)
        old = 2 * steps * math.exp((2 * steps - 1) * decay) * (excess - q / (2 - q))
        return -2 * math.expm1(2 * steps * decay) / (2 - q) ** 2 - old

    return root(slope, 0.0, math.nextafter(1.0, 0.0)) * sigma_min**2


def check_chain(gamma: float, steps: int, sigma_min: float) -> None:
    """Raise ValueError unless gamma > 1, steps >= 1 and sigma_min > 0."""
    if not (gamma > 1 and steps >= 1 and sigma_min > 0):
        raise ValueError(
            f"gamma={gamma}, steps={steps}, sigma_min={sigma_min}: need gamma > 1, steps >= 1 and sigma_min > 0"
        )


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Zero of f, with f(low) < 0 < f(high), by bisection to machine precision."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return middle
