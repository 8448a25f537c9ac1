"""One checkpoint, many samplers: quality against the number of network evaluations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig

from diffusion_lab.callback.evaluation import write_results
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.launch.compose import options, plain
from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.report import real_score, say
from diffusion_lab.launch.validation import nearest
from diffusion_lab.model import Model
from diffusion_lab.plot import curves
from diffusion_lab.sampler import Sampler


def planned(config: DictConfig, model: Model) -> list[tuple[str, int | None, Sampler]]:
    """(name, steps, sampler) of every point of the comparison; steps is None for a sampler without a number of them.

    Raises:
        ConfigError: for a sampler that does not exist or makes no sense for the model's noise.
    """
    points = []
    names = [config.compare] if isinstance(config.compare, str) else config.compare
    counts = [config.compare_steps] if isinstance(config.compare_steps, int) else config.compare_steps
    for name in names:
        if name not in options("sampler") or name in ("trained", "custom"):
            raise ConfigError(f"compare: {name} is no sampler{nearest(name, options('sampler'))}")
        chosen = compose("sample", [f"sampler={name}", "ckpt_path=.", f"variance={config.variance}"])
        settings = plain(chosen)["sampler"]
        for steps in counts if "steps" in settings else [None]:
            settings_of_point = settings if steps is None else {**settings, "steps": steps}
            sampler = instantiate(settings_of_point, "sampler")
            try:
                sampler.check(model.denoiser)
            except ValueError as error:
                say(f"left out  {name} with {steps} steps: {error}")
                continue
            points.append((name, steps, sampler))
    if not points:
        raise ConfigError("compare: no sampler of the list can sample from this model")
    return points


def compare(config: DictConfig, model: Model, evaluator: Evaluator, data: Any, out: Path) -> list[dict[str, Any]]:
    """Draw and score with every sampler from the same noise; write compare.json and compare.png, print the table."""
    records: list[dict[str, Any]] = []
    for name, steps, sampler in planned(config, model):
        model.denoiser.nfe, start = 0, time.perf_counter()
        drawn = list(
            model.sample_batches(
                config.num_samples, seed=config.seed, first=0, batch_size=config.batch_size, sampler=sampler
            )
        )
        seconds, calls = time.perf_counter() - start, model.denoiser.nfe / len(drawn)
        for metric, record in evaluator.quality(drawn, data, model.device).items():
            records.append(
                {
                    "sampler": name,
                    "steps": steps,
                    "nfe": calls,
                    "metric": metric,
                    "value": record["value"],
                    "real_training_data": real_score(record),
                    "samples_per_second": config.num_samples / seconds,
                }
            )
        own = [r for r in records if (r["sampler"], r["steps"]) == (name, steps)]
        shown = ", ".join(f"{r['metric']} {r['value']:.4g}" for r in own)
        say(f"{name:<22} steps {steps or '-':>5}   nfe {calls:>6g}   {config.num_samples / seconds:>8.1f}/s   {shown}")
        out.mkdir(parents=True, exist_ok=True)
        write_results(out / "compare.json", {"checkpoint": str(config.ckpt_path), "points": records})
    first = records[0]["metric"]
    lines = {
        name: [(r["nfe"], r["value"]) for r in records if r["sampler"] == name and r["metric"] == first]
        for name in dict.fromkeys(r["sampler"] for r in records)
    }
    curves(lines, out / "compare.png", x="network evaluations", y=first, level=records[0]["real_training_data"])
    return records
