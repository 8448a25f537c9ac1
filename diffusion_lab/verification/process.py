"""Checks of noise processes: coefficients by automatic differentiation, the marginal by simulation, Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from diffusion_lab.process import NoiseProcess
from diffusion_lab.verification.check import Chart, Check, Finding, farthest, largest, points, seeded
from diffusion_lab.verification.schedule import grid, rate

STEPS, PATHS = 400, 20_000
"""Steps and paths of the simulation of the SDE."""

START, STOP = 0.05, 0.7
"""Its first and last time: steps are too long where f or g change fast."""


def check_process(process: NoiseProcess) -> Iterator[Finding]:
    """Yield the checks of a noise process, and its charts."""
    t = grid()
    alpha, sigma = process.alpha_sigma(t)
    yield Check("values that are not finite", int((~torch.isfinite(torch.cat([alpha, sigma]))).sum()))
    both = torch.stack([process.alpha(t), process.sigma(t)])
    yield Check("alpha_sigma - (alpha, sigma)", largest(torch.stack([alpha, sigma]) - both))
    yield Check("largest rise of the log-SNR", process.log_snr(t).diff().max().item(), 0.0, 0.0, "<=")
    yield from check_coefficients(process)
    yield from check_steps(process)
    yield from check_prior(process)
    yield from check_simulation(process)
    yield from check_times(process)
    if process.levels is not None and process.levels > 1:
        yield from check_levels(process)
    scales = ("linear", "log" if sigma.max() > 5 else "linear")
    lines = {"alpha": points(t, alpha), "sigma": points(t, sigma)}
    yield Chart("process", "t   (0 = data)", "scale", lines, scales=scales)
    yield Chart("log_snr", "t   (0 = data)", "log SNR", {"log SNR": points(t, process.log_snr(t))})


def check_coefficients(process: NoiseProcess) -> Iterator[Finding]:
    """d alpha / dt = f alpha and d sigma^2 / dt = g^2 + 2 f sigma^2."""
    t = grid().requires_grad_()
    alpha, sigma = process.alpha(t), process.sigma(t)
    drift, growth = rate(alpha, t), rate(sigma**2, t)
    t, alpha, sigma = t.detach(), alpha.detach(), sigma.detach()
    f, g2 = process.f(t), process.g(t) ** 2
    error = largest(f * alpha - drift) / (largest(drift) or 1.0)
    yield Check("f alpha - d alpha/dt by autograd, relative", error, tolerance=1e-8)
    want = growth - 2 * drift / alpha * sigma**2
    yield Check("g^2 / (d sigma^2/dt - 2 f sigma^2) by autograd", farthest(g2 / want), 1.0, 1e-6)
    lines, exact = {"g^2": points(t, g2)}, {"by autograd": points(t, want)}
    yield Chart("diffusion", "t   (0 = data)", "g^2", lines, exact, ("linear", "log"))


def check_steps(process: NoiseProcess) -> Iterator[Check]:
    """Transitions compose to the marginal, and posteriors are Bayes' rule for Gaussians: precisions add."""
    s, t = grid(50)[:-1], grid(50)[1:]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.alpha_sigma(s), process.alpha_sigma(t)
    scale, variance = process.transition(s, t)
    yield Check("transition: scale alpha_s / alpha_t", farthest(scale * alpha_s / alpha_t), 1.0, 1e-9)
    total = (scale * sigma_s) ** 2 + variance
    yield Check("transition: its variance and that at s / sigma_t^2", farthest(total / sigma_t**2), 1.0, 1e-9)
    precision = 1 / sigma_s**2 + scale**2 / variance
    a, b, v = process.posterior(s, t)
    yield Check("posterior variance times the precision", farthest(v * precision), 1.0, 1e-7)
    wants = (scale / variance / precision, alpha_s / sigma_s**2 / precision)
    for name, found, want in (("x_t", a, wants[0]), ("x_0", b, wants[1])):
        yield Check(f"posterior weight of {name} / Bayes' rule", farthest(found / want), 1.0, 1e-7)


def check_prior(process: NoiseProcess) -> Iterator[Check]:
    """x_1 of data of unit variance has the standard deviation of the prior, and little of the data is left in it."""
    if process.levels == 1:
        return  # a single level starts from a heuristic
    alpha, sigma = (one.item() for one in process.alpha_sigma(torch.ones((), dtype=torch.float64)))
    std = (alpha**2 + sigma**2) ** 0.5
    yield Check("standard deviation of x_1 / that of the prior", std / process.prior_std, 1.0, 0.02)
    yield Check("sigma / alpha at t = 1", sigma / alpha, 10.0, 0.0, ">=")
    alpha, sigma = (one.item() for one in process.alpha_sigma(torch.tensor(process.t_min, dtype=torch.float64)))
    yield Check("sigma / alpha at t_min", sigma / alpha, 0.0, 0.1)


def check_simulation(process: NoiseProcess) -> Iterator[Finding]:
    """Paths of dx = f x dt + g dw from x_0 = 1, with f and g constant in a step, have moments alpha and sigma."""
    generator = seeded()
    t = torch.linspace(START, STOP, STEPS + 1, dtype=torch.float64)
    (first, sigma) = (one.item() for one in process.alpha_sigma(t[0]))
    x = first + sigma * torch.randn(PATHS, dtype=torch.float64, generator=generator)
    middle, h = (t[1:] + t[:-1]) / 2, (STOP - START) / STEPS
    means, stds = [first], [sigma]
    for f, g in zip(process.f(middle).tolist(), process.g(middle).tolist(), strict=True):
        noise = torch.randn(PATHS, dtype=torch.float64, generator=generator)
        x = math.exp(h * f) * x + math.exp(h * f / 2) * g * h**0.5 * noise
        means.append(x.mean().item())
        stds.append(x.std().item())
    alpha, sigma = (one.tolist() for one in process.alpha_sigma(t))
    error = 5 / PATHS**0.5
    yield Check("mean of simulated paths - alpha, in sigma", (means[-1] - alpha[-1]) / sigma[-1], 0.0, error + 0.005)
    yield Check("standard deviation of simulated paths / sigma", stds[-1] / sigma[-1], 1.0, error + 0.005)
    yield Chart(
        "simulation", "t", "paths from x_0 = 1",
        {"mean": list(zip(t.tolist(), means, strict=True)), "std": list(zip(t.tolist(), stds, strict=True))},
        {"alpha": list(zip(t.tolist(), alpha, strict=True)), "sigma": list(zip(t.tolist(), sigma, strict=True))},
    )  # fmt: skip


def check_times(process: NoiseProcess) -> Iterator[Check]:
    """Training times lie in their range, and `time` inverts the log-SNR."""
    t = process.sample_times(10_000, torch.device("cpu"), seeded())
    yield Check("smallest training time", t.min().item(), process.t_train_min, 1e-9, ">=")
    yield Check("largest training time", t.max().item(), 1.0, 0.0, "<=")
    if process.levels != 1:
        t = grid(50)
        yield Check("time(log_snr(t)) - t", largest(process.time(process.log_snr(t)) - t), tolerance=1e-8)


def check_levels(process: NoiseProcess) -> Iterator[Check]:
    """Products of the steps from level to level are the marginal; posterior variances are those of Ho et al. 2020."""
    levels = process.levels
    t = torch.arange(levels + 1, dtype=torch.float64) / levels
    alpha, sigma = process.alpha_sigma(t)
    yield Check("alpha at level 0", alpha[0].item(), 1.0, 0.0)
    yield Check("sigma at level 0", sigma[0].item(), 0.0, 0.0)
    scale, beta = process.transition(t[:-1], t[1:])
    yield Check("product of the scales / alpha", farthest(scale.cumprod(0) / alpha[1:]), 1.0, 1e-9)
    total = torch.zeros((), dtype=torch.float64)
    sums = []
    for factor, added in zip(scale, beta, strict=True):
        total = factor**2 * total + added
        sums.append(total)
    yield Check("sum of the variances / sigma^2", farthest(torch.stack(sums) / sigma[1:] ** 2), 1.0, 1e-9)
    variance = process.reverse_variance(t[1:-1], t[2:], "fixed_small")
    want = beta[1:] * sigma[1:-1] ** 2 / sigma[2:] ** 2
    yield Check("posterior variance / beta sigma_s^2 / sigma_t^2", farthest(variance / want), 1.0, 1e-9)
    drawn = process.sample_times(1000, torch.device("cpu"), seeded()).double() * levels
    yield Check("training times are levels: distance to one", largest(drawn - drawn.round()), 0.0, 1e-3)
