"""The command `python -m diffusion_lab.bench.few_steps RUN`: Fréchet distance against network evaluations (NFE).

Our samplers, and those of diffusers with the same network, generate the same number of images for each NFE; the table
shows their Fréchet distances.  Samples are stored, so that an interrupted command resumes.
"""

from __future__ import annotations

import argparse
import inspect
import math
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab import checkpoint
from diffusion_lab.bench.benchmark import Unavailable
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import DataModule
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.model import Model
from diffusion_lab.noise import Generators, draw
from diffusion_lab.output import tolerant
from diffusion_lab.run.compare import Point, sample_store, sampler_settings
from diffusion_lab.run.sample_spec import SampleSpec, sample_spec
from diffusion_lab.storage import checkpoint_file, run_directory
from diffusion_lab.storage.run_directory import CheckpointError

OURS = (
    "ancestral", "ancestral spacing=quadratic", "reverse_diffusion", "euler_maruyama", "ddim", "ddim spacing=quadratic",
    "euler", "heun", "dpm_solver", "dpm_solver predictor.order=3", "unipc", "dpm_solver_sde",
    "dpm_solver_sde spacing=quadratic",
)  # fmt: skip
"""Samplers as on the command line; after the name follow overrides of its keys."""

LOG_SNR = {"use_lu_lambdas": True}
PEERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DDPM": ("DDPMScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++, log-SNR": ("DPMSolverMultistepScheduler", LOG_SNR),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, log-SNR": ("UniPCMultistepScheduler", {"use_exponential_sigmas": True, "solver_order": 3}),
    "SDE-DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "SDE-DPM-Solver++, log-SNR": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **LOG_SNR}),
}
"""Schedulers of diffusers, with options other than the defaults."""

NEAR = 1.1
"""Factor of the best distance within which a distance counts as reached."""


class Scheduler:
    """A scheduler of diffusers with the interface of our samplers: the same noise and network, its own steps.

    Raises:
        Unavailable: on a call, for a process that is not a discrete process with betas.
    """

    def __init__(self, name: str, steps: int, **options: Any) -> None:
        import diffusers

        self.make = partial(getattr(diffusers, name), prediction_type="epsilon", **options)
        self.steps = steps

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str
    ) -> Tensor:
        """Samples of `shape` (B, ...) in the model's range."""
        levels = denoiser.process.levels
        if levels is None or denoiser.process.keeps_signal:
            raise Unavailable("diffusers' schedulers need the betas of a discrete model")
        times = torch.arange(levels + 1, dtype=torch.float64) / levels
        kept = denoiser.process.alpha(times[1:]) ** 2
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        scheduler = self.make(num_train_timesteps=levels, trained_betas=betas.numpy())
        scheduler.set_timesteps(self.steps)
        draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        x = draw(shape, generator, torch.float32, device) * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, step)
            x = scheduler.step(denoiser(seen, times[int(step) + 1]).eps, step, x, **draws).prev_sample
        return x


@dataclass(frozen=True)
class Implementation:
    """A way to sample: what makes it for a number of steps, and the settings that decide what it draws."""

    name: str
    make: Callable[[int], Callable[..., Tensor]]
    settings: Mapping[str, Any]


def ours(arguments: str, variance: str | None) -> Implementation:
    """A sampler of conf/sampler.

    Raises:
        ConfigError: for an unknown sampler, or an adaptive one.
    """
    name, *keys = arguments.split()
    settings = sampler_settings(name, variance, keys)
    if "steps" not in settings:
        raise ConfigError(f"{name} is adaptive: its number of network evaluations cannot be set")
    return Implementation(arguments, lambda steps: instantiate({**settings, "steps": steps}, "sampler"), settings)


def theirs(name: str) -> Implementation:
    """A scheduler of diffusers.

    Raises:
        ImportError: without diffusers.
    """
    import diffusers

    scheduler, options = PEERS[name]
    settings = {"program": f"diffusers {diffusers.__version__}", "scheduler": scheduler, **options}
    return Implementation(f"diffusers {name}", lambda steps: Scheduler(scheduler, steps, **options), settings)


def steps_for(implementation: Implementation, nfe: int, model: Model) -> int | None:
    """Return the largest number of steps with at most `nfe` network evaluations, counted in dry runs.

    None if the sampler does not support so few steps.
    """
    dry_run = Denoiser(lambda x, c_noise: torch.zeros_like(x), model.denoiser.process, model.denoiser.parameterization)

    def calls(steps: int) -> float:
        dry_run.nfe = 0
        try:
            implementation.make(steps)(dry_run, (1, *model.shape), None, "cpu")
        except ValueError:  # more steps than timesteps, or too few
            return math.inf if steps > 2 else 0
        return dry_run.nfe

    steps = max(bisect(range(1, nfe + 1), nfe, key=calls), 1)
    return steps if max(nfe - 1, 1) <= calls(steps) <= nfe else None  # Heun's calls are odd


@dataclass(frozen=True)
class Scorer:
    """Generates and scores samples of a model with different samplers."""

    model: Model
    data: DataModule
    evaluator: Evaluator
    wanted: SampleSpec
    log_dir: Path

    @classmethod
    def of(cls, run: str, samples: int, seeds: int, batch_size: int, log_dir: Path) -> Scorer:
        """Create it for the newest checkpoint of a run, with the metric of its evaluation."""
        contents = checkpoint_file.read(run_directory.find(run))
        model, config = checkpoint.build(contents), contents["config"]
        data = instantiate(config["data"], "data")
        data.prepare_data()
        data.setup("test")
        ours = {"samples": samples, "repeats": seeds, "measures": ["frechet"], "batch_size": batch_size}
        settings = config["callback"]["evaluation"]["evaluator"]
        evaluator = instantiate({**settings, **ours, "cache": str(log_dir / "statistics")}, "evaluator")
        evaluator.prepare(data, model.device)
        wanted = sample_spec(contents, model, "ema", {}, "32-true", seed=0, batch_size=batch_size, device="cpu")
        return cls(model, data, evaluator, wanted, log_dir)

    def __call__(self, implementation: Implementation, nfe: int) -> dict[str, Any] | None:
        """Return the record of the distance for this NFE; None if the sampler does not support it."""
        steps = steps_for(implementation, nfe, self.model)
        if steps is None:
            return None
        settings, name = {**implementation.settings, "steps": steps}, implementation.name.replace(" ", "_")
        point = Point(name, steps, settings, implementation.make(steps))
        series = sample_store(point, self.wanted, self.model, self.log_dir)
        return next(iter(self.evaluator.quality(series, self.data).values()))


def summary(found: Mapping[int, float], best_of_all: float) -> tuple[float, int, int | None]:
    """Return (best distance, smallest NFE within 10 % of it, smallest NFE within 10 % of the best of all)."""
    best = min(found.values())
    least = min(nfe for nfe, value in found.items() if value <= NEAR * best)
    return best, least, min((nfe for nfe, value in found.items() if value <= NEAR * best_of_all), default=None)


def table(found: Mapping[str, Mapping[int, float]], counts: Sequence[int]) -> str:
    """Return a Markdown table: a row for each sampler, a column for each NFE."""
    best_of_all = min(value for row in found.values() for value in row.values())
    head = ["sampler", *map(str, counts), "best", "NFE to 10 % of it", "NFE to 10 % of the best of all"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, row in found.items():
        best, least, near = summary(row, best_of_all)
        cells = [f"{row[nfe]:.2f}" if nfe in row else "" for nfe in counts]
        lines.append([name, *cells, f"{best:.2f}", str(least), str(near or "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def deviation(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the relative standard error of a mean over seeds, pooled over the records; nan for a single seed."""
    if all(len(record.get("repeats", ())) < 2 for record in records):
        return math.nan
    runs = torch.tensor([record.get("repeats", [record["value"]]) for record in records], dtype=torch.float64)
    return ((runs / runs.mean(1, keepdim=True)).var(1).mean() / runs.shape[1]).sqrt().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the Fréchet distance of samplers against network evaluations, for one trained model."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.few_steps", description=main.__doc__)
    parser.add_argument("run", help="directory of a run, a .ckpt file, or last")
    parser.add_argument("--samples", type=int, default=1000, help="images per distance")
    parser.add_argument("--seeds", type=int, default=3, help="distances averaged per cell, each of other images")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 12, 15, 20, 30, 50, 100], help="evaluations")
    parser.add_argument("--sampler", nargs="+", default=OURS, help="of ours: 'dpm_solver spacing=karras' ...")
    parser.add_argument("--peer", nargs="*", choices=[*PEERS, []], default=list(PEERS), help="of diffusers, or none")
    parser.add_argument("--batch-size", type=int, default=1000, help="images generated at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="where images are stored")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        scorer = Scorer.of(options.run, options.samples, options.seeds, options.batch_size, options.logs)
    except CheckpointError as error:
        parser.error(str(error))
    variance = (scorer.model.config or {}).get("variance")
    makers = [partial(ours, sampler, variance) for sampler in options.sampler]
    makers += [partial(theirs, name) for name in options.peer]
    records: dict[str, dict[int, dict[str, Any]]] = {}
    skipped: set[str] = set()
    for make in makers:
        try:
            implementation = make()
            row = {nfe: record for nfe in options.nfe if (record := scorer(implementation, nfe))}
        except (ImportError, Unavailable) as error:
            if str(error) not in skipped:
                print(f"skipped: {error}", flush=True)
            skipped.add(str(error))
            continue
        if row:
            records[implementation.name] = row
            message = (f"{nfe}: {record['value']:.3f}" for nfe, record in row.items())
            print(implementation.name, *message, sep="  ", flush=True)
    every = [record for row in records.values() for record in row.values()]
    print(f"\n{table({name: {n: r['value'] for n, r in row.items()} for name, row in records.items()}, options.nfe)}\n")
    several = f", each cell a mean over {options.seeds} sets with standard error {deviation(every):.1%}"
    real = f"; real images: {every[0]['real']:.2f}" if every and "real" in every[0] else ""
    print(f"Fréchet distances of {options.samples} images{several * (options.seeds > 1)}{real}")


if __name__ == "__main__":
    tolerant()
    main()
