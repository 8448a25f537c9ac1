"""How long an evaluation will take, told before it is begun."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.model import Model
from diffusion_lab.sampler import Sampler

FLOW_CALLS, BACKWARD = 100, 3.0
"""Evaluations that an exact likelihood takes, 50 to 130 at tolerance 1e-5, and what one with its gradient costs."""

PROBE = 32  # samples in the timed batch on a CPU, where time is proportional to them


@dataclass(frozen=True)
class Estimate:
    """Seconds of an evaluation on this many ranks: of its samples, of its likelihoods."""

    samples: float
    likelihood: float

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.samples + self.likelihood

    def __str__(self) -> str:
        return in_words(self.seconds)


def in_words(seconds: float) -> str:
    """A time in seconds, minutes, hours or days."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 259_200)):
        if seconds < most:
            return f"{seconds / size:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def estimate(model: Model, evaluator: Evaluator, data: DataModule, times: int = 1) -> Estimate:
    """Seconds that `times` passes of an evaluator will need for a model, from one timed call of its network.

    Equal on all ranks.  Extracting features is not counted: it is little beside the many calls that a sample takes.
    """
    batch = min(evaluator.batch_size, evaluator.samples * evaluator.repeats)
    timed = batch if model.device.type != "cpu" else min(batch, PROBE)
    call = ranks.from_first(seconds_per_call(model, timed)) / timed  # of one sample
    call *= times / ranks.rank_and_world()[1]
    denoiser = model.sampling_denoiser(model.labels_of([0], 0))
    drawn = evaluator.samples * evaluator.repeats * network_calls(model.sampler, denoiser, model.shape)
    items = evaluator.likelihood_items(data) * evaluator.likelihood_repeats
    calls = sum(likelihood_calls(model, name) for name in model.likelihood)
    return Estimate(call * drawn if evaluator.judges_samples(data) else 0.0, call * items * calls)


def likelihood_calls(model: Model, name: str) -> float:
    """Evaluations, in units of a forward pass, that a likelihood takes of each item."""
    terms = getattr(model.likelihood[name], "terms", None)
    if name == "flow":
        return FLOW_CALLS * BACKWARD
    return float(terms or model.denoiser.process.levels or FLOW_CALLS)


def network_calls(sampler: Sampler, denoiser: Denoiser, shape: tuple[int, ...]) -> int:
    """Network evaluations of a sample, counted by a dry run with a network that costs nothing.

    An adaptive solver takes other numbers of a real network; for it this is a guess from below.
    """

    def nothing(x: Tensor, _: Tensor) -> Tensor:
        return torch.zeros_like(x)

    dry = denoiser.with_network(nothing)
    one = tuple(1 if i else n for i, n in enumerate(shape))
    device = next(denoiser.parameters()).device
    sampler(dry, (1, *one), torch.Generator(device), device)
    return dry.nfe


@torch.no_grad()
def seconds_per_call(model: Model, batch: int) -> float:
    """Seconds of one call of the network for a batch, the first two not counted."""
    x = torch.zeros((batch, *model.shape), device=model.device)
    t = torch.tensor(0.5, device=model.device)
    denoiser = model.conditional_denoiser(torch.zeros(batch, dtype=torch.int64))
    with model.evaluating():
        for timed in (False, False, True):
            if timed and x.device.type != "cpu":
                torch.accelerator.synchronize(x.device)
            start = time.perf_counter()
            denoiser(x, t)
            if timed and x.device.type != "cpu":
                torch.accelerator.synchronize(x.device)
    return time.perf_counter() - start


def fit(evaluator: Evaluator, model: Model, data: DataModule, max_seconds: float | None, passes: int = 1) -> Estimate:
    """Make an evaluator small enough for a bound on its time, in whole batches; what it will then take."""
    message = estimate(model, evaluator, data, passes)
    if max_seconds is None or message.seconds <= max_seconds:
        return message
    share, items = max_seconds / message.seconds, evaluator.likelihood_items(data)
    evaluator.samples = whole(evaluator.samples * share, evaluator.batch_size, evaluator.samples)
    if message.likelihood > 0:
        evaluator.likelihood_samples = whole(items * share, evaluator.likelihood_batch_size, items)
    return estimate(model, evaluator, data, passes)


def whole(wanted: float, batch: int, limit: int) -> int:
    """The largest multiple of a batch within `wanted`; one batch at least, if there is one in `limit`."""
    return min(max(batch, int(wanted) // batch * batch), limit)
