"""What every sampler must do on Gaussian data, whose law, flow and best denoiser are known in closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.noise import image_generators
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, NoiseProcess
from diffusion_lab.sampler import ProbabilityFlow, Sampler
from diffusion_lab.sampler.record import Draw, Evaluate, Run
from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw


def data_of(size: int) -> Gaussian:
    """Coordinates of various means and variances."""
    mean = 0.3 * torch.cos(torch.arange(size, dtype=torch.float64))
    return Gaussian(mean, torch.linspace(0.05, 0.5, size, dtype=torch.float64))


DATA, WIDE = data_of(8), data_of(256)
"""Of few coordinates; of many, for norms, whose quotient is a number only there."""

FINE, DRAWN = 300, 2_000
"""Steps in which the law must be that of the data, and samples drawn where it is not known exactly."""


@dataclass(frozen=True)
class Check:
    """A number and what it must be: at most `most`, or at least `least`."""

    name: str
    value: float
    most: float = math.inf
    least: float = -math.inf

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        bound = f"<= {self.most:.3g}" if self.most < math.inf else f">= {self.least:.3g}"
        return f"{self.name:<58} {self.value:>10.3g}   {bound:<10} {'ok' if self.passed else 'FAILED'}"


def processes() -> dict[str, NoiseProcess]:
    """One of each kind."""
    return {"VP": VP(Linear()), "VE": VE(Geometric(0.01, 20.0)), "DDPM": DiscreteProcess(Linear())}


def check_sampler(sampler: Sampler) -> Iterator[Check]:
    """Every check of a sampler, on each of the `processes` that it fits.

    Raises:
        ValueError: if it fits none.
    """
    fits, why = {}, ""
    for name, process in processes().items():
        try:
            fitting(sampler).check(DATA.denoiser(process))
            fits[name] = process
        except ValueError as error:
            why = str(error)
    if not fits:
        raise ValueError(why)
    for name, process in fits.items():
        checks = check_flow if isinstance(sampler, ProbabilityFlow) else check_steps
        for check in checks(sampler, process):
            yield Check(f"{name}: {check.name}", check.value, check.most, check.least)


def fitting(sampler: Sampler, steps: int = FINE, **changes: object) -> Sampler:
    """The same in float64, with other settings, and with other steps unless it makes one or has times of its own."""
    sampler = copy.copy(sampler)
    sampler.dtype = torch.float64
    if sampler.steps != 1 and not isinstance(sampler, ProbabilityFlow):
        each = getattr(sampler.corrector, "steps", 1) if sampler.corrector is not None else 1
        sampler.steps = max(2, min(steps, 4_000 // each))
    for key, value in changes.items():
        setattr(sampler, key, value)
    return sampler


def check_steps(sampler: Sampler, process: NoiseProcess) -> Iterator[Check]:
    """Of a sampler that makes steps between times."""
    denoiser, fine = DATA.denoiser(process), fitting(sampler)
    times = fine.check(denoiser)
    short = fitting(sampler, 25)
    start, _ = DATA.moments(process, times[0])
    x = start + process.sigma(times[0]) * torch.randn(3, 8, dtype=torch.float64, generator=seeded())
    plan = short.record(denoiser, x)
    as_written, denoiser.nfe = short.as_written(denoiser, x, seeded()), 0
    *_, (_, recorded, _) = plan(x, seeded())
    yield Check("recorded - as written", relative(recorded, as_written), most=1e-10)
    kinds = [type(one) for one in plan.instructions]
    if Run not in kinds:
        yield Check("network evaluations - those recorded", abs(denoiser.nfe - kinds.count(Evaluate)), most=0)
    whole, alone = (short(denoiser, (len(who), 8), image_generators(0, who)) for who in (range(4), [2]))
    if getattr(sampler.corrector, "norm", "image") == "image":
        yield Check("an image alone - in a batch", relative(alone[0], whole[2]), most=1e-9)
    yield from check_law(fine, process, exact=Run not in kinds)
    if Run not in kinds and Draw not in kinds and sampler.predictor is not None:
        yield Check("order of convergence", order(sampler, process), least=0.8)


def check_law(sampler: Sampler, process: NoiseProcess, exact: bool) -> Iterator[Check]:
    """Mean and deviation of what it makes of noised data, exactly or in samples, are those of the data.

    Langevin steps of some size, and not infinitely many, come near them only.
    """
    data = DATA if exact else WIDE
    denoiser = data.denoiser(process)
    times = sampler.check(denoiser)
    like = torch.zeros(DRAWN, len(data.mean), dtype=torch.float64)
    if exact:
        draws = sum(type(one) is Draw for one in sampler.record(denoiser, like).instructions)
        law = GaussianLaw(data, denoiser, times, 2 + draws)
        *_, (_, end) = sampler.follow(law, law.begin())
        found = law.moments(end)
    else:
        mean, std = data.moments(process, times[0])
        drawn = sampler.as_written(denoiser, mean + std * like.normal_(generator=seeded()), seeded())
        found = drawn.mean(0), drawn.std(0)
    mean, std = data.moments(process, torch.zeros_like(times[0]) if sampler.denoise else times[-1])
    slack, near = 0.0 if exact else 4.5 / DRAWN**0.5, 1 if sampler.corrector is None else 5
    yield Check("mean - that of the data, in its deviations", largest((found[0] - mean) / std), 0.01 * near + slack)
    yield Check("deviation / that of the data - 1", largest(found[1] / std - 1), 0.04 * near + slack)


def order(sampler: Sampler, process: NoiseProcess) -> float:
    """log2 of the ratio of errors against the flow's map when the steps are halved, on a part of the way."""
    denoiser, errors = DATA.denoiser(process), []
    for count in (30, 60):
        part = fitting(sampler, count + 1, spacing="log_snr", denoise=False, t_end=0.3, times=None, sections=None)
        times = part.timesteps(denoiser)
        mean, std = DATA.moments(process, times[0])
        x = mean + std * torch.randn(4, 8, dtype=torch.float64, generator=seeded())
        want = DATA.flow(process, x, times[0], times[-1])
        errors.append((part.as_written(denoiser, x) - want).square().mean().sqrt().item())
    return math.log2(errors[0] / errors[1])


def check_flow(sampler: ProbabilityFlow, process: NoiseProcess) -> Iterator[Check]:
    """Of an adaptive solver: the flow's map itself."""
    denoiser, exact = DATA.denoiser(process), fitting(sampler, denoise=False)
    times = exact.check(denoiser)
    x = exact.prior(denoiser, (16, 8), seeded())
    *_, last = exact.trajectory(denoiser, x)
    want = DATA.flow(process, x, times[0], times[-1])
    yield Check("solution - the flow's map", relative(last.x, want), most=100 * max(sampler.rtol, sampler.atol))
    whole, alone = (exact(denoiser, (len(who), 8), image_generators(0, who)) for who in (range(4), [2]))
    yield Check("an image alone - in a batch", relative(alone[0], whole[2]), most=100 * max(sampler.rtol, sampler.atol))


def seeded() -> torch.Generator:
    """The same noise each time."""
    return torch.Generator().manual_seed(0)


def largest(values: Tensor) -> float:
    """Of their sizes."""
    return values.abs().max().item()


def relative(found: Tensor, want: Tensor) -> float:
    """The largest difference, of the largest value."""
    return largest(found - want) / largest(want)
