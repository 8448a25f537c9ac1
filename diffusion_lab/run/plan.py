"""Announce what a sampling run will do; refuse it if the disk is too small or it takes more than a day."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from omegaconf import DictConfig

from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import Evaluator, SampleStore
from diffusion_lab.evaluation.duration import format_seconds, likelihood_calls, network_calls, seconds_per_call
from diffusion_lab.model import Model
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import format_bytes, free_bytes

DAY = 24 * 3600.0
PROBE = 8  # samples in the timed call on a CPU, where time is proportional to them
WORTH = 50  # estimate the time only if it is this many times the cost of that call


def announce_plan(
    config: DictConfig,
    fabric: Fabric,
    series: Sequence[SampleStore],
    count: int,
    what: str,
    evaluator: Evaluator | None,
    data: Any,
) -> None:
    """Print the number of samples, the expected time and what is written; on the first rank, before the others start.

    Raises:
        ConfigError: if they do not fit on the disk, or take longer than a day without `allow_long=true`.
    """
    model, place = series[0].model, series[0].folder
    if config.png and not series[0].images:
        raise ConfigError("png=true writes images, but these samples are not images: leave it out")
    left = [count - min(count, stored(one)) for one in series]
    size = size_on_disk(model, sum(left), evaluator) + (config.npz + config.png) * size_of(model) * count
    check_room(size, place, f"{sum(left):,} samples")
    denoiser = model.sampling_denoiser(model.labels_of([0], 0), images=[0])
    calls = sum(n * network_calls(one.sampler, denoiser, model.shape) for one, n in zip(series, left, strict=True))
    scored = 0.0 if config.compare else scored_calls(model, evaluator, data)
    call = seconds_of_a_sample(config, fabric, model, max(left), calls + scored)
    times = None if call is None else [call * n / fabric.world_size for n in (calls, scored)]
    check_time(sum(times or ()), config.allow_long)
    missing, wanted = sum(sum(map(len, one.samples.missing(count))) for one in series), count * len(series)
    parts = [f"sampling {missing:,} from {what} on {fabric.world_size} x {fabric.device.type}"]
    parts += [f"about {format_seconds(times[0])}"] if times else []
    several = f"{len(series)} directories of {os.path.relpath(place.parent)}"
    parts += [f"{format_bytes(size)} in {several if len(series) > 1 else os.path.relpath(place)}"]
    say(", ".join(parts) + (f"; {wanted - missing:,} of {wanted:,} exist already" if missing < wanted else ""))
    cautious = [one.sampler for one in series if hasattr(one.sampler, "caution")]
    for caution in dict.fromkeys(sampler.caution(model.denoiser) for sampler in cautious):
        if caution:
            say(caution)
    if evaluator is not None:
        more = f", about {format_seconds(times[1])} more" if times and scored else ""
        written = "compare.json" if config.compare else "results.json"
        say(f"evaluation: {evaluator.plan(model, data, with_likelihood=not config.compare)}{more}; writes {written}")


def stored(series: SampleStore) -> int:
    """Roughly how many samples are stored, without opening the files."""
    return sum(1 for _ in series.samples.folder.glob("*.npy")) * series.batch_size


def size_of(model: Model) -> int:
    """Bytes of a sample: one per number for images in grey levels, else four."""
    return math.prod(model.shape) * (1 if model.has_grey_levels else 4)


def size_on_disk(model: Model, samples: int, evaluator: Evaluator | None) -> int:
    """Bytes that samples and their features take."""
    features = 0 if evaluator is None or evaluator.features is None else 4 * evaluator.features.dimensions
    return samples * (size_of(model) + features)


def check_room(needed: int, place: Path, what: str) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        ConfigError: with the space needed and the space free.
    """
    free = free_bytes(place.absolute())
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} need {format_bytes(needed)}, but {place} has {format_bytes(free)} free: generate fewer "
            "(num_samples, metric.samples), leave out npz and png, or write them elsewhere (out)"
        )


def check_time(seconds: float, allowed: bool) -> None:
    """Refuse what takes longer than a day, unless that is allowed.

    Raises:
        ConfigError: with the expected time.
    """
    if seconds > DAY and not allowed:
        raise ConfigError(
            f"this would take about {format_seconds(seconds)}: use fewer samples, fewer sampler.steps or more "
            "trainer.devices, or add allow_long=true"
        )


def seconds_of_a_sample(config: DictConfig, fabric: Fabric, model: Model, samples: int, calls: float) -> float | None:
    """Measured seconds per item of a network call; None where the calls are too few to be worth timing."""
    batch = min(config.batch_size, samples) or 1
    timed = min(batch, PROBE) if model.device.type == "cpu" and not config.compile else batch
    if calls < WORTH * 3 * timed:
        return None
    with fabric.autocast():
        return seconds_per_call(model, timed) / timed


def scored_calls(model: Model, evaluator: Evaluator | None, data: Any) -> float:
    """Network evaluations, counted per item, that the likelihoods need."""
    if evaluator is None:
        return 0.0
    items = evaluator.likelihood_items(data) * evaluator.likelihood_repeats
    return items * sum(likelihood_calls(model, name) for name in model.likelihood)
