"""Checks of samplers on Gaussian data, for which distribution, flow and optimal denoiser are known in closed form."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import image_generators
from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler import ProbabilityFlow, Sampler, for_consistency_models
from diffusion_lab.sampler.record import Draw, Evaluate, Run
from diffusion_lab.verification.cases import DATA, WIDE, processes
from diffusion_lab.verification.check import Chart, Check, Finding, points, relative, seeded, under
from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw
from diffusion_lab.verification.sampler_run import overhead, precision

FINE, SAMPLES = 300, 500
"""Steps for which the samples must have the distribution of the data; samples if it is not known exactly."""

ORDER = (30, 60)
"""Numbers of steps that determine the order of convergence."""


def check_sampler(sampler: Sampler) -> Iterator[Finding]:
    """Yield all checks of a sampler on each of the `processes` that it supports, and its charts.

    Raises:
        ValueError: if it supports none.
    """
    supported, reason = {}, ""
    for name, process in processes().items():
        if name == "flow" and getattr(sampler, "predictor", sampler) is None:
            continue  # Langevin steps alone are too slow for a mean that moves up to t = 0
        try:
            with_settings(sampler).check(denoiser_for(sampler, process))
            supported[name] = process
        except ValueError as error:
            reason = str(error)
    if not supported:
        raise ValueError(reason)
    for name, process in supported.items():
        checks = check_flow if isinstance(sampler, ProbabilityFlow) else check_steps
        yield from under(name, checks(sampler, process))
    short = with_settings(sampler, max(2, 50 // corrector_steps(sampler)))
    yield from under(name, overhead(short, denoiser_for(sampler, process)))


def denoiser_for(sampler: Sampler, process: NoiseProcess, data: Gaussian = DATA) -> Denoiser:
    """The exact denoiser of the data, or its consistency function, whichever the sampler is for."""
    return data.denoiser(process, for_consistency_models(sampler))


def with_settings(sampler: Sampler, steps: int = FINE, **changes: object) -> Sampler:
    """Return a copy in float64 with other settings, and with `steps` steps unless it is a one-step or ODE sampler."""
    sampler = copy.copy(sampler)
    sampler.dtype = torch.float64
    if sampler.steps != 1 and not isinstance(sampler, ProbabilityFlow):
        sampler.steps = max(2, min(steps, 4_000 // corrector_steps(sampler)))
    for key, value in changes.items():
        setattr(sampler, key, value)
    return sampler


def corrector_steps(sampler: Sampler) -> int:
    """Network evaluations of the corrector at one timestep; 1 without a corrector."""
    return getattr(getattr(sampler, "corrector", None), "steps", 1)


def check_steps(sampler: Sampler, process: NoiseProcess) -> Iterator[Finding]:
    """Yield the checks of a sampler with discrete timesteps."""
    denoiser, fine = denoiser_for(sampler, process), with_settings(sampler)
    times = fine.check(denoiser)
    short = with_settings(sampler, 25)
    start, _ = DATA.moments(process, times[0])
    x = start + process.sigma(times[0]) * torch.randn(3, 8, dtype=torch.float64, generator=seeded())
    plan = short.record(denoiser, x)
    as_written, denoiser.nfe = short.as_written(denoiser, x, seeded()), 0
    *_, (_, recorded, _) = plan(x, seeded())
    yield Check("recorded - as written", relative(recorded, as_written), tolerance=1e-10)
    kinds = [type(one) for one in plan.instructions]
    if Run not in kinds:
        yield Check("network evaluations (NFE)", denoiser.nfe, kinds.count(Evaluate))
    batch, alone = (short(denoiser, (len(i), 8), image_generators(0, i)) for i in (range(4), [2]))
    if getattr(sampler.corrector, "norm", "image") == "image":
        yield Check("an image alone - in a batch", relative(alone[0], batch[2]), tolerance=1e-9)
    yield precision(short, denoiser, x)
    yield from check_law(fine, process, exact=Run not in kinds)
    if Run not in kinds and sampler.corrector is None:
        yield law_chart(sampler, process)
        if Draw not in kinds:
            yield from check_order(sampler, process, expected_order(sampler, kinds.count(Evaluate) / short.steps))


def check_law(sampler: Sampler, process: NoiseProcess, exact: bool) -> Iterator[Finding]:
    """Check that mean and standard deviation of the samples are those of the data, exactly or by Monte Carlo.

    For finitely many Langevin steps of finite size this holds only approximately.
    """
    samples = drawn(with_settings(sampler, 100), process, DATA) if exact else drawn(sampler, process, WIDE)
    mean, std = law_errors(sampler, process) if exact else (worst(samples.mean(0)), worst(samples.std(0) - 1))
    slack, factor = 0.0 if exact else 4.5 / SAMPLES**0.5, 1 if sampler.corrector is None else 5
    yield Check("error of the mean / standard deviation of the data", mean, tolerance=0.01 * factor + slack)
    yield Check("standard deviation / that of the data", 1 + std, 1.0, 0.06 * factor + slack)
    yield histogram(samples)


def final(sampler: Sampler, process: NoiseProcess, data: Gaussian, times: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation that samples should have, (D,) each."""
    return data.moments(process, torch.zeros_like(times[0]) if sampler.denoise else times[-1])


def drawn(sampler: Sampler, process: NoiseProcess, data: Gaussian) -> Tensor:
    """Samples (SAMPLES, D), standardised by the moments of the data: N(0, I) if the sampler is right."""
    denoiser = denoiser_for(sampler, process, data)
    times, z = sampler.check(denoiser), torch.randn(SAMPLES, len(data.mean), dtype=torch.float64, generator=seeded(1))
    mean, std = data.moments(process, times[0])
    x = sampler.as_written(denoiser, mean + std * z, seeded())
    mean, std = final(sampler, process, data, times)
    return (x - mean) / std


def law_errors(sampler: Sampler, process: NoiseProcess) -> tuple[float, float]:
    """The worst errors of mean and standard deviation, relative to the standard deviation of the data; no sampling."""
    denoiser = denoiser_for(sampler, process)
    times, like = sampler.check(denoiser), torch.zeros(1, len(DATA.mean), dtype=torch.float64)
    draws = sum(type(one) is Draw for one in sampler.record(denoiser, like).instructions)
    law = GaussianLaw(DATA, denoiser, times, 2 + draws, for_consistency_models(sampler))
    *_, (_, end) = sampler.follow(law, law.begin())
    (found_mean, found_std), (mean, std) = law.moments(end), final(sampler, process, DATA, times)
    return worst((found_mean - mean) / std), worst(found_std / std - 1)


def histogram(samples: Tensor) -> Chart:
    """The density of standardised samples against that of N(0, 1)."""
    edges = torch.linspace(-4, 4, 33, dtype=torch.float64)
    counts = torch.histc(samples.flatten(), 32, -4, 4) / samples.numel() * 4
    fine = torch.linspace(-4, 4, 81, dtype=torch.float64)
    normal = points(fine, (-(fine**2) / 2).exp() / math.sqrt(2 * math.pi))
    x, y = "sample, standardised by the moments of the data", "density"
    return Chart("samples", x, y, {"": points((edges[1:] + edges[:-1]) / 2, counts)}, {"N(0, 1)": normal})


def worst(errors: Tensor) -> float:
    """The error of the largest absolute value, with its sign."""
    return errors[errors.abs().argmax()].item()


def law_chart(sampler: Sampler, process: NoiseProcess) -> Chart:
    """The larger of the errors of mean and standard deviation against the number N of steps."""
    line: list[tuple[float, float]] = []
    for steps in (10, 30, 90):
        chosen = with_settings(sampler, steps)
        with contextlib.suppress(ValueError):  # too few steps for this sampler
            line.append((chosen.steps, max(*map(abs, law_errors(chosen, process)), 1e-12)))
    exact = {"order 1": [(n, line[0][1] * line[0][0] / n) for n, _ in line]}
    return Chart("law", "steps N", "error of mean or standard deviation, relative", {"": line}, exact, ("log", "log"))


def expected_order(sampler: Sampler, evaluations: float) -> float:
    """The order of convergence that a step declares as `order`; without, 2 if it takes two evaluations or more."""
    return getattr(sampler.predictor, "order", 2 if evaluations > 1.5 else 1)


def check_order(sampler: Sampler, process: NoiseProcess, expected: float) -> Iterator[Finding]:
    """Check the order of convergence to the probability flow, log2 of the ratio of errors for 30 and 60 steps.

    Multistep methods have their order only after first steps of lower order, therefore the tolerance.
    """
    errors = {count: flow_error(sampler, process, count) for count in (15, *ORDER)}
    few, many = (errors[count] for count in ORDER)
    yield Check("order of convergence", math.log2(few / many), expected, 0.2 * expected, ">=")
    exact = {f"order {k}": [(n, few * (ORDER[0] / n) ** k) for n in errors] for k in (1, 2)}
    lines = {"": list(errors.items())}
    yield Chart("convergence", "steps N", "error against the probability flow", lines, exact, ("log", "log"))


def flow_error(sampler: Sampler, process: NoiseProcess, count: int) -> float:
    """The error of `count` steps from t = 1 to 0.3, evenly in log-SNR, against the probability flow."""
    denoiser = denoiser_for(sampler, process)
    part = with_settings(sampler, count + 1, spacing="log_snr", denoise=False, t_end=0.3, times=None, sections=None)
    times = part.timesteps(denoiser)
    mean, std = DATA.moments(process, times[0])
    x = mean + std * torch.randn(4, 8, dtype=torch.float64, generator=seeded())
    want = DATA.flow(process, x, times[0], times[-1])
    return (part.as_written(denoiser, x) - want).square().mean().sqrt().item()


def check_flow(sampler: ProbabilityFlow, process: NoiseProcess) -> Iterator[Finding]:
    """Yield the checks of an adaptive ODE solver, against the exact map of the flow."""
    denoiser, exact = DATA.denoiser(process), with_settings(sampler, denoise=False)
    times = exact.check(denoiser)
    x = exact.prior(denoiser, (16, 8), seeded())
    *_, last = exact.trajectory(denoiser, x)
    want, slack = DATA.flow(process, x, times[0], times[-1]), 100 * max(sampler.rtol, sampler.atol)
    mean, std = DATA.moments(process, times[-1])
    yield histogram((exact(denoiser, (SAMPLES, 8), seeded()) - mean) / std)
    yield Check("solution - the flow's map", relative(last.x, want), tolerance=slack)
    batch, alone = (exact(denoiser, (len(i), 8), image_generators(0, i)) for i in (range(4), [2]))
    yield Check("an image alone - in a batch", relative(alone[0], batch[2]), tolerance=slack)
    *_, single = with_settings(sampler, denoise=False, dtype=torch.float32).trajectory(denoiser, x)
    yield Check("float32 - float64", relative(single.x.double(), last.x), tolerance=slack)
