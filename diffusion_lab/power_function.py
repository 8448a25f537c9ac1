"""Power-function averages of weights over a training, and their reconstruction; Karras et al. 2024, arXiv:2312.02696.

The average after t steps has the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] (Eq. 2).  Its
relative standard deviation, that of p divided by t, names a profile: std = 0.05 looks back about 5 % of the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.ranges import RelativeStd, mismatch


class Profile(NamedTuple):
    """The profile of the average with exponent `gamma` after `step` steps."""

    gamma: float
    step: int


def std_of(gamma: float) -> float:
    """Relative standard deviation of the profile with exponent gamma: sqrt((gamma+1) / ((gamma+2)^2 (gamma+3)))."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(std: float) -> float:
    """Exponent of the profile with this relative standard deviation, by the cubic equation that `std_of` gives.

    Raises:
        ValueError: unless 0 < std <= 0.2887, that of the uniform average.
    """
    if reason := mismatch(RelativeStd, std):
        raise ValueError(f"std={std:g} {reason}, which is that of the uniform average")
    s = std**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return max(float(root.real) for root in roots if abs(root.imag) < 1e-6 * abs(root))


def decay(gamma: float, n: int) -> float:
    """Decay (1 - 1/n)^(gamma + 1) of step n = 1, 2, ... (Eq. 3).

    The weights of step k then have the weight of the profile on [k - 1, k] in the average of every later step.
    """
    return (1 - 1 / n) ** (gamma + 1)


def inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> Tensor:
    """Integrals of p q over tau for all pairs of profiles, (rows, columns), float64 (Appendix C.2)."""
    gammas, steps = (
        torch.broadcast_tensors(*(torch.tensor(one, dtype=torch.float64) for one in ([[v] for v in a], list(b))))
        for a, b in zip(zip(*rows, strict=True), zip(*columns, strict=True), strict=True)
    )
    later = torch.where(steps[0] <= steps[1], gammas[1], gammas[0])  # the exponent of the profile that ends later
    ratio = torch.minimum(*steps) / torch.maximum(*steps)
    return (gammas[0] + 1) * (gammas[1] + 1) / (gammas[0] + gammas[1] + 1) * ratio**later / torch.maximum(*steps)


def coefficients(stored: Sequence[Profile], wanted: Profile) -> tuple[Tensor, float]:
    """Return (c, error): c (stored,) with sum 1 minimises |sum_i c_i p_i - p|, and error is this norm / |p|.

    The sum is fixed, beyond the paper's least squares, so that weights that training leaves unchanged stay exact when
    snapshots are few.  If v are independent of each other in time, with variance 1, the reconstructed average of v
    deviates from the exact one by at most error |p| (root mean square).
    """
    matrix, target = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    norm, own = matrix.diagonal().sqrt(), inner_products([wanted], [wanted]).item()
    sides = torch.stack([target / norm, 1 / norm], 1)
    free, ones = torch.linalg.lstsq(matrix / norm / norm[:, None], sides, driver="gelsd").solution.div(norm[:, None]).T
    c = free + (1 - free.sum()) / ones.sum() * ones
    squared = own - 2 * c @ target + c @ matrix @ c
    return c, math.sqrt(max(squared.item(), 0.0) / own)
