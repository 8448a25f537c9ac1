"""The five techniques by which NCSNv2 sets its noise levels and its sampler for a data set (Song & Ermon 2020).

1. The largest sigma is the largest distance between two data points: `largest_distance`.
2. The levels are geometric, with a ratio that lets neighbours overlap by one half: `ratio`, `number_of_levels`.
3. The network is not conditioned on the level; its output is divided by sigma: the row output="scaled_score",
   c_noise="nothing" of diffusion_lab/parameterization.py.
4. The step size of annealed Langevin dynamics keeps each level's variance through the next: `step_size`.
5. Sampling uses a moving average of the weights: diffusion_lab/callback/ema.py.
`advise` gives all the numbers for a data set at once.  In all of them gamma is sigma_{i-1}/sigma_i > 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Advice:
    """What techniques 1, 2 and 4 say of a data set."""

    sigma_max: float
    """Largest noise level."""
    sigma_min: float
    """Smallest noise level, as it was given."""
    levels: int
    """Levels of the geometric ladder, rounded up: neighbours overlap by the target at least."""
    gamma: float
    """Ratio of neighbouring levels of this ladder, a little below that of the target."""
    steps: int
    """Langevin steps at each level, as they were given."""
    step_size: float
    """epsilon; the step at level i is epsilon sigma_i^2 / sigma_min^2."""


def advise(data: Tensor, sigma_min: float = 0.01, steps: int = 5, target: float = 0.5, block: int = 512) -> Advice:
    """Noise levels and step size for a data set (N, ...), on the scale on which it is given.

    The published settings are sigma_min = 0.01 and 5 to 3 steps for images in [0, 1].
    Raises ValueError where `largest_distance`, `number_of_levels` or `step_size` does.
    """
    sigma_max = largest_distance(data, block)
    levels = max(2, math.ceil(number_of_levels(sigma_min, sigma_max, data[0].numel(), target)))
    gamma = math.exp(math.log(sigma_max / sigma_min) / (levels - 1))
    return Advice(sigma_max, sigma_min, levels, gamma, steps, step_size(gamma, steps, sigma_min))


def largest_distance(data: Tensor, block: int = 512) -> float:
    """Technique 1: the largest Euclidean distance between two points of a data set (N, ...), computed in float64.

    Points are compared in blocks, those far from the mean first: since |a - b| <= |a - m| + |b - m|, most pairs need no
    look.  Beside the data, a few copies of `block` points and of their distances are in memory, on the data's device.
    Raises ValueError for less than two points, numbers that are not finite, or a block below 1.
    """
    if data.dim() < 2 or len(data) < 2 or block < 1:
        raise ValueError(f"data of shape {tuple(data.shape)}, block={block}: give at least two points and one a block")
    # Apple's processor has no float64.
    dtype = torch.float32 if data.device.type == "mps" else torch.float64
    data, starts = data.detach().flatten(1), range(0, len(data), block)
    mean = sum(data[start : start + block].to(dtype).sum(0) for start in starts) / len(data)
    radius = torch.cat([(data[start : start + block].to(dtype) - mean).norm(dim=1) for start in starts])
    if not radius.isfinite().all():
        raise ValueError("the data hold numbers that are not finite: leave those points out")
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
    """Technique 2: how far a level's noise reaches into that of its neighbour, sigma_{i-1} = gamma sigma_i.

    Phi(sqrt(2 D)(gamma - 1) + 3 gamma) - Phi(sqrt(2 D)(gamma - 1) - 3 gamma)

    (Song & Ermon 2020, Section 3.2), Phi the distribution function of the normal law: the probability under one level's
    radii, which are about N(sqrt(D) sigma_i, sigma_i^2 / 2), of lying within three deviations of its neighbour's mean.
    """
    shift = math.sqrt(2 * dimensions) * (gamma - 1)
    return (math.erfc((shift - 3 * gamma) / math.sqrt(2)) - math.erfc((shift + 3 * gamma) / math.sqrt(2))) / 2


def ratio(dimensions: int, target: float = 0.5) -> float:
    """Technique 2: the ratio gamma > 1 of neighbouring levels whose `overlap` is `target`, in D dimensions.

    Raises ValueError below five dimensions, where no ratio brings the overlap down, and for a target that is not
    between 0 and 0.997, the overlap of equal levels.
    """
    if dimensions < 5:
        raise ValueError(f"dimensions={dimensions}: the overlap of levels falls with their ratio from 5 dimensions up")
    if not 0 < target < overlap(1.0, dimensions):
        raise ValueError(f"target={target}: an overlap lies between 0 and {overlap(1.0, dimensions):.3f}")
    high = 2.0
    while overlap(high, dimensions) > target:
        high *= 2
    return root(lambda gamma: target - overlap(gamma, dimensions), 1.0, high)


def number_of_levels(sigma_min: float, sigma_max: float, dimensions: int, target: float = 0.5) -> float:
    """Technique 2: levels of the geometric ladder from sigma_max to sigma_min whose neighbours overlap by `target`.

    L = 1 + log(sigma_max / sigma_min) / log(gamma),   gamma = ratio(dimensions, target): a real number, to be rounded.

    The published numbers of levels are those of a target of 0.567.
    Raises ValueError where sigma_min is not between 0 and sigma_max, or `ratio` does.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: give 0 < sigma_min < sigma_max")
    return 1 + math.log(sigma_max / sigma_min) / math.log(ratio(dimensions, target))


def variance_ratio(step_size: float, gamma: float, steps: int, sigma_min: float = 0.01) -> float:
    """Technique 4: variance after a level's Langevin steps over the level's own, if all data were a single point.

    (1 - q)^(2 T) (gamma^2 - 2 / (2 - q)) + 2 / (2 - q),   q = epsilon / sigma_min^2

    for T `steps` of epsilon sigma_i^2 / sigma_min^2 from the variance of the level before (Song & Ermon 2020,
    Proposition 3).  It is the same at every level, and never as small as 1.
    Raises ValueError for a gamma of at most 1, less than one step, or a q outside of (0, 2), where the steps diverge.
    """
    check_chain(gamma, steps, sigma_min)
    q = step_size / sigma_min**2
    if not 0 < q < 2:
        raise ValueError(f"step_size={step_size}: Langevin dynamics need one between 0 and 2 sigma_min^2")
    stationary = 2 / (2 - q)
    return (1 - q) ** (2 * steps) * (gamma**2 - stationary) + stationary


def step_size(gamma: float, steps: int, sigma_min: float = 0.01) -> float:
    """Technique 4: the epsilon whose `variance_ratio` is nearest to 1, for a number of steps at each level.

    It is the zero of the derivative by q, on (0, 1).  Raises ValueError as above.
    """
    check_chain(gamma, steps, sigma_min)
    excess = (gamma - 1) * (gamma + 1)

    def slope(q: float) -> float:
        decay = math.log1p(-q)
        old = 2 * steps * math.exp((2 * steps - 1) * decay) * (excess - q / (2 - q))
        return -2 * math.expm1(2 * steps * decay) / (2 - q) ** 2 - old

    return root(slope, 0.0, math.nextafter(1.0, 0.0)) * sigma_min**2


def check_chain(gamma: float, steps: int, sigma_min: float) -> None:
    """Raise ValueError where there are no falling levels, or no steps between them."""
    if not (gamma > 1 and steps >= 1 and sigma_min > 0):
        raise ValueError(f"gamma={gamma}, steps={steps}, sigma_min={sigma_min}: give more than 1, at least 1, above 0")


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Zero of f between f(low) < 0 and f(high) > 0, by halving until no number lies between."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return middle
