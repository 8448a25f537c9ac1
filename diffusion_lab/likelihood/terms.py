"""Terms of the variational bound: the divergence of a reverse step, and the decoder's likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_lab.process import DiscreteProcess, Variance, broadcast, learned


def step_kl(
    process: DiscreteProcess, t: Tensor, x0: Tensor, mean: Tensor, variance: Variance, fraction: Tensor | None = None
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s = t - 1/T, in nats, (B,); Ho et al. 2020, Eq. 8.

        sum over dimensions of (l + e^-l - 1 + e^-l b^2 |x_0 - mean|^2 / small) / 2,   l = log(variance / small)

    where small is the posterior's variance, b its coefficient of x_0, and l = v log(large / small) for a learned range
    (Nichol & Dhariwal 2021, Eq. 15).

    Args:
        t: noise levels 2/T ... 1, (B,).
        mean: the estimate of x_0, (B, ...).
        fraction: v, of the shape of x0.
    """
    t = t.double()
    s = t - 1 / process.levels
    _, b, small = process.posterior(s, t)
    large = process.transition(s, t)[1]
    spread = {"fixed_small": torch.zeros_like(small)}.get(variance, (large / small).log())
    spread, scale = (broadcast(k, x0) for k in (spread, b**2 / small))
    if variance == "learned_range":
        spread = learned(fraction) * spread
    terms = spread + torch.expm1(-spread) + scale * (-spread).exp() * (x0 - mean).square()
    return 0.5 * terms.flatten(1).sum(1)


def decoder_nll(
    process: DiscreteProcess,
    x0: Tensor,
    mean: Tensor,
    variance: Variance,
    fraction: Tensor | None,
    ends: tuple[float, float],
    grey_levels: int | None,
) -> Tensor:
    """-log p(x_0 | x_1) of the Gaussian around `mean`, in nats, (B,): of grey levels (Eq. 13), or a density of points.

    Its variance is the posterior's at the second level (Ho et al.'s code); with a learned range that is the lower end,
    and beta_1 the upper one.

    Args:
        ends: the image range.
    """
    std = process.decoder_variance.sqrt().to(x0)
    if variance == "learned_range":
        first = torch.tensor(1 / process.levels, dtype=torch.float64)
        large = process.transition(torch.zeros_like(first), first)[1].to(x0)
        std = std * (0.5 * learned(fraction) * (large / std**2).log()).exp()
    if grey_levels is None:
        nats = 0.5 * ((x0 - mean) / std) ** 2 + (std * math.sqrt(2 * math.pi)).log()
    else:
        nats = -log_mass_of_level(x0, mean, std, *ends, grey_levels)
    return nats.flatten(1).sum(1)


def log_mass_of_level(
    x: Tensor, mean: Tensor, std: Tensor | float, low: float, high: float, grey_levels: int
) -> Tensor:
    """log of the probability of x's bin under N(mean, std^2), for `grey_levels` even levels from low to high.

    Ho et al. 2020, Eq. 13, for any number of levels, of the shape of x.  Also exact in the far tails, where the
    official code is bounded below by log 1e-12.
    """
    half = (high - low) / (grey_levels - 1) / 2
    # By symmetry the bin is moved to the left of the mean, where log_ndtr is accurate.
    flipped = x > mean
    lower, upper = (x - half - mean) / std, (x + half - mean) / std
    log_left = torch.special.log_ndtr(torch.where(flipped, -upper, lower))
    log_right = torch.special.log_ndtr(torch.where(flipped, -lower, upper))
    # The outermost bins are open; replaced here, where gradients stay finite.
    lowest, highest = x < low + half, x > high - half
    log_left = torch.where(torch.where(flipped, highest, lowest), -math.inf, log_left)
    log_right = torch.where(torch.where(flipped, lowest, highest), 0.0, log_right)
    return log_right + torch.log1p(-(log_left - log_right).exp())
