"""Estimates of the time that an evaluation will take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.seconds import DeviceClock
from diffusion_lab.model import Model
from diffusion_lab.sampler import Sampler

FLOW_CALLS, BACKWARD = 100, 3.0
"""Network evaluations of an exact likelihood (50 to 130 at tolerance 1e-5), and the cost of one with its gradient."""

PROBE = 32  # samples in the timed batch on a CPU, where time is proportional to the batch size


@dataclass(frozen=True)
class Duration:
    """Seconds of an evaluation: for sampling, and for likelihoods."""

    samples: float
    likelihood: float

    @property
    def seconds(self) -> float:
        """Total."""
        return self.samples + self.likelihood

    def __str__(self) -> str:
        return format_seconds(self.seconds)


def format_seconds(seconds: float) -> str:
    """Format a time in seconds, minutes, hours or days."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 259_200)):
        if seconds < most:
            return f"{seconds / size:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def estimate_duration(model: Model, evaluator: Evaluator, data: DataModule, passes: int = 1) -> Duration:
    """Estimate the time of `passes` evaluations of a model from one timed call of its network; equal on all ranks.

    Feature extraction is not included, as it costs little compared with sampling.
    """
    batch = min(evaluator.batch_size, evaluator.total)
    timed = batch if model.device.type != "cpu" else min(batch, PROBE)
    seconds = ranks.from_first(seconds_per_call(model, timed)) / timed  # per call and sample
    seconds *= passes / ranks.rank_and_world()[1]
    denoiser = model.sampling_denoiser(model.labels_of([0], 0), images=[0])
    sampling = evaluator.total * network_calls(model.sampler, denoiser, model.shape)
    items = evaluator.likelihood_items(data) * evaluator.likelihood_repeats
    likelihood = items * sum(likelihood_calls(model, name) for name in model.likelihood)
    return Duration(seconds * sampling if evaluator.scores_samples(data) else 0.0, seconds * likelihood)


def likelihood_calls(model: Model, name: str) -> float:
    """Return the network evaluations of a likelihood per item, in units of a forward pass."""
    terms = getattr(model.likelihood[name], "terms", None)
    if name == "flow":
        return FLOW_CALLS * BACKWARD
    return float(terms or model.denoiser.process.levels or FLOW_CALLS)


def network_calls(sampler: Sampler, denoiser: Denoiser, shape: tuple[int, ...]) -> int:
    """Return the network evaluations per sample, counted in a dry run with a network that returns zero.

    For an adaptive solver this is only a lower bound.
    """

    def zero(x: Tensor, _: Tensor, **condition: Tensor) -> Tensor:
        return x.new_zeros(denoiser.output_shape(x)) + 0 * x.sum()  # of x, as controls differentiate it

    dry_run = denoiser.with_network(zero)
    small = tuple(1 if i else n for i, n in enumerate(shape)) if denoiser.control is None else shape
    device = next(denoiser.parameters()).device
    sampler(dry_run, (1, *small), torch.Generator(device), device)
    return dry_run.nfe


@torch.no_grad()
def seconds_per_call(model: Model, batch: int) -> float:
    """Time one network evaluation of a batch, after two warm-up calls."""
    x = torch.zeros((batch, *model.shape), device=model.device)
    t = torch.tensor(0.5, device=model.device)
    denoiser = model.conditional_denoiser(torch.zeros(batch, dtype=torch.int64))
    with model.evaluating():
        for _ in range(3):
            with DeviceClock(x.device) as clock:
                denoiser(x, t)
            seconds = clock.seconds()
    return seconds


def limit_duration(
    evaluator: Evaluator, model: Model, data: DataModule, max_seconds: float | None, passes: int = 1
) -> Duration:
    """Reduce the samples of an evaluator so that it takes at most `max_seconds`; return its new duration."""
    duration = estimate_duration(model, evaluator, data, passes)
    if max_seconds is None or duration.seconds <= max_seconds:
        return duration
    fraction, items = max_seconds / duration.seconds, evaluator.likelihood_items(data)
    evaluator.samples = round_to_batches(evaluator.samples * fraction, evaluator.batch_size, evaluator.samples)
    if duration.likelihood > 0:
        evaluator.likelihood_samples = round_to_batches(items * fraction, evaluator.likelihood_batch_size, items)
    return estimate_duration(model, evaluator, data, passes)


def round_to_batches(count: float, batch: int, limit: int) -> int:
    """Round down to a multiple of the batch size, at least one batch and at most `limit`."""
    return min(max(batch, int(count) // batch * batch), limit)
