"""Checks of schedules: alpha and sigma, their derivatives by automatic differentiation, and their discrete levels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lab.process import DiscreteProcess, Schedule
from diffusion_lab.process.schedule import BetaSchedule
from diffusion_lab.verification.check import Chart, Check, Finding, farthest, largest, points

LEVELS = (50, 1000)
"""Numbers of discrete levels."""


def grid(count: int = 401) -> Tensor:
    """Times inside (0, 1), which avoid round numbers, where a schedule may have a kink."""
    return torch.linspace(0.00113, 0.99917, count, dtype=torch.float64)


def rate(values: Tensor, t: Tensor) -> Tensor:
    """d values / dt by automatic differentiation, of the shape of t; 0 for values that do not depend on t."""
    return torch.autograd.grad((values + 0 * t).sum(), t)[0]


def check_schedule(schedule: Schedule) -> Iterator[Finding]:
    """Yield the checks of a schedule, and its charts."""
    t = grid()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    yield Check("values that are not finite", int((~torch.isfinite(torch.cat([alpha, sigma]))).sum()))
    yield Check("largest rise of alpha", alpha.diff().max().item(), 0.0, 1e-12, "<=")
    yield Check("smallest rise of sigma", sigma.diff().min().item(), 0.0, 1e-12, ">=")
    yield Check("largest rise of the log-SNR", log_snr(schedule, t).diff().max().item(), 0.0, 0.0, "<=")
    yield from check_ends(schedule)
    both = torch.cat([alpha, sigma])
    single = torch.cat([schedule.alpha(t.float()), schedule.sigma(t.float())]).double()
    yield Check("float32 - float64, relative above 1", largest((single - both) / both.clamp(min=1)), 0.0, 1e-3)
    alone = max(largest(function(t)[7] - function(t[7])) for function in (schedule.alpha, schedule.sigma))
    yield Check("a time alone - in a batch", alone, 0.0, 1e-12)
    yield from check_family(schedule)
    if isinstance(schedule, BetaSchedule):
        yield from check_beta(schedule)
    yield from check_levels(schedule)
    scales = ("linear", "log" if sigma.max() > 5 else "linear")
    lines = {"alpha": points(t, alpha), "sigma": points(t, sigma)}
    yield Chart("schedule", "t   (0 = data)", "scale", lines, scales=scales)
    yield Chart("log_snr", "t   (0 = data)", "log SNR", {"log SNR": points(t, log_snr(schedule, t))})


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2)."""
    return 2 * (schedule.alpha(t).log() - schedule.sigma(t).log())


def check_ends(schedule: Schedule) -> Iterator[Check]:
    """Near data at t = 0; at t = 1 data of unit variance have the standard deviation of the prior."""
    ends = torch.tensor([1e-5, 1.0], dtype=torch.float64)
    (alpha0, alpha1), (sigma0, sigma1) = schedule.alpha(ends).tolist(), schedule.sigma(ends).tolist()
    yield Check("alpha at t = 0", alpha0, 1.0, 0.01)
    yield Check("sigma / alpha at t = 0", sigma0 / alpha0, 0.0, 0.05)
    std = (alpha1**2 + sigma1**2) ** 0.5
    yield Check("standard deviation at t = 1 / that of the prior", std / schedule.prior_std, 1.0, 0.02)
    yield Check("sigma / alpha at t = 1", sigma1 / alpha1, 10.0, 0.0, ">=")


def check_family(schedule: Schedule) -> Iterator[Check]:
    """alpha as a function of sigma^2/alpha^2, by which levels are interpolated, and its derivative."""
    t = grid()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    ratio = ((sigma / alpha) ** 2).requires_grad_()
    again = schedule.alpha_of(ratio)
    yield Check("alpha_of(sigma^2/alpha^2) / alpha", farthest(again / alpha), 1.0, 1e-9)
    want = rate(again.log(), ratio)
    found = schedule.rate_of_log_alpha(ratio.detach())
    scale = largest(want * ratio) or 1.0
    yield Check("rate_of_log_alpha - autograd, relative", largest((found - want) * ratio) / scale, tolerance=1e-9)


def check_beta(schedule: BetaSchedule) -> Iterator[Finding]:
    """beta = -d log alpha^2 / dt, and alpha^2 + sigma^2 = 1."""
    t = grid().requires_grad_()
    want = -rate(2 * schedule.alpha(t).log(), t).detach()
    found, t = schedule.beta(t.detach()), t.detach()
    smooth = (t - schedule.t_limit).abs() > 1e-6
    yield Check("beta / autograd of -log alpha^2", farthest((found / want)[smooth]), 1.0, 1e-8)
    norm = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    yield Check("alpha^2 + sigma^2", farthest(norm), 1.0, 1e-12)
    scales = ("linear", "log")
    exact = {"-d log alpha^2 / dt by autograd": points(t[smooth], want[smooth])}
    yield Chart("beta", "t   (0 = data)", "beta", {"beta": points(t, found)}, exact, scales)


def check_levels(schedule: Schedule) -> Iterator[Check]:
    """The discrete levels increase, belong to the schedule's family, and approach the continuous schedule."""
    for count in LEVELS:
        alpha, sigma = schedule.noise_levels(count)
        rises = (sigma / alpha).diff().min().item() if len(sigma) == count else float("nan")
        yield Check(f"smallest rise of sigma/alpha of {count} levels", rises, 0.0, 0.0, ">=")
        again = schedule.alpha_of((sigma / alpha) ** 2)
        yield Check(f"alpha_of(sigma^2/alpha^2) / alpha of {count} levels", farthest(again / alpha), 1.0, 1e-9)
    t = torch.linspace(0.1, 0.9, 33, dtype=torch.float64)
    process = DiscreteProcess(schedule, LEVELS[-1])
    gap = largest(process.log_snr(t) - log_snr(schedule, t))
    yield Check("log-SNR of 1000 levels - continuous, 0.1 <= t <= 0.9", gap, 0.0, 0.1)
