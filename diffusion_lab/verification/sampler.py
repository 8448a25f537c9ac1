"""Checks of samplers on Gaussian data, for which distribution, flow and optimal denoiser are known in closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import image_generators
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, NoiseProcess, ProbabilityPath, Rectified
from diffusion_lab.sampler import ProbabilityFlow, Sampler, for_consistency_models
from diffusion_lab.sampler.record import Draw, Evaluate, Run
from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw


def data_of(size: int) -> Gaussian:
    """Return Gaussian data with coordinates of different means and variances."""
    mean = 0.3 * torch.cos(torch.arange(size, dtype=torch.float64))
    return Gaussian(mean, torch.linspace(0.05, 0.5, size, dtype=torch.float64))


DATA, WIDE = data_of(8), data_of(256)
"""Data of few coordinates; and of many, for samplers with norms, whose ratios concentrate in high dimensions."""

FINE, SAMPLES = 300, 2_000
"""Steps for which the samples must have the distribution of the data; samples if it is not known exactly."""


@dataclass(frozen=True)
class Check:
    """A value and its bound: at most `most`, or at least `least`."""

    name: str
    value: float
    most: float = math.inf
    least: float = -math.inf

    @property
    def passed(self) -> bool:
        """Whether the value is within the bound; False for NaN."""
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        bound = f"<= {self.most:.3g}" if self.most < math.inf else f">= {self.least:.3g}"
        return f"{self.name:<58} {self.value:>10.3g}   {bound:<10} {'ok' if self.passed else 'FAILED'}"


def processes() -> dict[str, NoiseProcess]:
    """Return one process of each type."""
    continuous = {"VP": VP(Linear()), "VE": VE(Geometric(0.01, 20.0)), "flow": ProbabilityPath(Rectified())}
    return {**continuous, "DDPM": DiscreteProcess(Linear())}


def check_sampler(sampler: Sampler) -> Iterator[Check]:
    """Yield all checks of a sampler on each of the `processes` that it supports.

    Raises:
        ValueError: if it supports none.
    """
    supported, reason = {}, ""
    for name, process in processes().items():
        if name == "flow" and getattr(sampler, "predictor", sampler) is None:
            continue  # Langevin steps alone are too slow for a mean that moves up to t = 0
        try:
            with_settings(sampler).check(exact_denoiser(sampler, process))
            supported[name] = process
        except ValueError as error:
            reason = str(error)
    if not supported:
        raise ValueError(reason)
    for name, process in supported.items():
        checks = check_flow if isinstance(sampler, ProbabilityFlow) else check_steps
        for check in checks(sampler, process):
            yield Check(f"{name}: {check.name}", check.value, check.most, check.least)


def exact_denoiser(sampler: Sampler, process: NoiseProcess, data: Gaussian = DATA) -> Denoiser:
    """Return the exact denoiser, or the exact consistency function, that the sampler is for."""
    return data.denoiser(process, for_consistency_models(sampler))


def with_settings(sampler: Sampler, steps: int = FINE, **changes: object) -> Sampler:
    """Return a copy in float64 with other settings, and with `steps` steps unless it is a one-step or ODE sampler."""
    sampler = copy.copy(sampler)
    sampler.dtype = torch.float64
    if sampler.steps != 1 and not isinstance(sampler, ProbabilityFlow):
        corrector_steps = getattr(sampler.corrector, "steps", 1) if sampler.corrector is not None else 1
        sampler.steps = max(2, min(steps, 4_000 // corrector_steps))
    for key, value in changes.items():
        setattr(sampler, key, value)
    return sampler


def check_steps(sampler: Sampler, process: NoiseProcess) -> Iterator[Check]:
    """Yield the checks of a sampler with discrete timesteps."""
    denoiser, fine = exact_denoiser(sampler, process), with_settings(sampler)
    times = fine.check(denoiser)
    short = with_settings(sampler, 25)
    start, _ = DATA.moments(process, times[0])
    x = start + process.sigma(times[0]) * torch.randn(3, 8, dtype=torch.float64, generator=seeded())
    plan = short.record(denoiser, x)
    as_written, denoiser.nfe = short.as_written(denoiser, x, seeded()), 0
    *_, (_, recorded, _) = plan(x, seeded())
    yield Check("recorded - as written", relative(recorded, as_written), most=1e-10)
    kinds = [type(one) for one in plan.instructions]
    if Run not in kinds:
        yield Check("network evaluations - those recorded", abs(denoiser.nfe - kinds.count(Evaluate)), most=0)
    batch, alone = (short(denoiser, (len(i), 8), image_generators(0, i)) for i in (range(4), [2]))
    if getattr(sampler.corrector, "norm", "image") == "image":
        yield Check("an image alone - in a batch", relative(alone[0], batch[2]), most=1e-9)
    yield from check_law(fine, process, exact=Run not in kinds)
    if Run not in kinds and Draw not in kinds and sampler.predictor is not None:
        yield Check("order of convergence", order(sampler, process), least=0.8)


def check_law(sampler: Sampler, process: NoiseProcess, exact: bool) -> Iterator[Check]:
    """Check that mean and standard deviation of the samples are those of the data, exactly or by Monte Carlo.

    For finitely many Langevin steps of finite size this holds only approximately.
    """
    data = DATA if exact else WIDE
    denoiser = exact_denoiser(sampler, process, data)
    times = sampler.check(denoiser)
    like = torch.zeros(SAMPLES, len(data.mean), dtype=torch.float64)
    if exact:
        draws = sum(type(one) is Draw for one in sampler.record(denoiser, like).instructions)
        law = GaussianLaw(data, denoiser, times, 2 + draws, for_consistency_models(sampler))
        *_, (_, end) = sampler.follow(law, law.begin())
        found = law.moments(end)
    else:
        mean, std = data.moments(process, times[0])
        samples = sampler.as_written(denoiser, mean + std * like.normal_(generator=seeded()), seeded())
        found = samples.mean(0), samples.std(0)
    mean, std = data.moments(process, torch.zeros_like(times[0]) if sampler.denoise else times[-1])
    slack, factor = 0.0 if exact else 4.5 / SAMPLES**0.5, 1 if sampler.corrector is None else 5
    yield Check("mean - that of the data, in its deviations", largest((found[0] - mean) / std), 0.01 * factor + slack)
    yield Check("deviation / that of the data - 1", largest(found[1] / std - 1), 0.04 * factor + slack)


def order(sampler: Sampler, process: NoiseProcess) -> float:
    """Return the order of convergence: log2 of the ratio of errors for 30 and 60 steps, from t = 1 to 0.3."""
    denoiser, errors = exact_denoiser(sampler, process), []
    for count in (30, 60):
        part = with_settings(sampler, count + 1, spacing="log_snr", denoise=False, t_end=0.3, times=None, sections=None)
        times = part.timesteps(denoiser)
        mean, std = DATA.moments(process, times[0])
        x = mean + std * torch.randn(4, 8, dtype=torch.float64, generator=seeded())
        want = DATA.flow(process, x, times[0], times[-1])
        errors.append((part.as_written(denoiser, x) - want).square().mean().sqrt().item())
    return math.log2(errors[0] / errors[1])


def check_flow(sampler: ProbabilityFlow, process: NoiseProcess) -> Iterator[Check]:
    """Yield the checks of an adaptive ODE solver, against the exact map of the flow."""
    denoiser, exact = DATA.denoiser(process), with_settings(sampler, denoise=False)
    times = exact.check(denoiser)
    x = exact.prior(denoiser, (16, 8), seeded())
    *_, last = exact.trajectory(denoiser, x)
    want = DATA.flow(process, x, times[0], times[-1])
    yield Check("solution - the flow's map", relative(last.x, want), most=100 * max(sampler.rtol, sampler.atol))
    batch, alone = (exact(denoiser, (len(i), 8), image_generators(0, i)) for i in (range(4), [2]))
    yield Check("an image alone - in a batch", relative(alone[0], batch[2]), most=100 * max(sampler.rtol, sampler.atol))


def seeded() -> torch.Generator:
    """Return a generator with the same seed in every call."""
    return torch.Generator().manual_seed(0)


def largest(values: Tensor) -> float:
    """Return the largest absolute value."""
    return values.abs().max().item()


def relative(found: Tensor, want: Tensor) -> float:
    """Return the largest difference divided by the largest absolute value."""
    return largest(found - want) / largest(want)
