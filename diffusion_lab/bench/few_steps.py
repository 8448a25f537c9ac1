"""The command `python -m diffusion_lab.bench.few_steps RUN`: Fréchet distance against network evaluations (NFE).

Our samplers, those of diffusers with the same network, and students distilled from it, generate the same number of
images for each NFE; a table and a figure show their Fréchet distances.  Students and samples are stored, so that an
interrupted command resumes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion_lab import checkpoint
from diffusion_lab.bench.benchmark import Unavailable
from diffusion_lab.bench.implementation import OURS, Implementation, ours, steps_for, theirs
from diffusion_lab.bench.schedulers import PEERS
from diffusion_lab.bench.students import METHODS, default_teacher, students
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.model import Model
from diffusion_lab.output import tolerant
from diffusion_lab.run.compare import Point, sample_store
from diffusion_lab.run.sample_spec import SampleSpec, sample_spec
from diffusion_lab.storage import checkpoint_file, run_directory
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.run_directory import CheckpointError

Records = dict[int, dict[str, Any]]
"""Records of the distance by NFE."""

NEAR = 1.1
"""Factor of the best distance within which a distance counts as reached."""


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


def sampler_row(scorer: Scorer, make: Callable[[], Implementation], counts: Sequence[int]) -> tuple[str, Records]:
    """The name of a sampler, and its records by NFE."""
    implementation = make()
    return implementation.name, {nfe: record for nfe in counts if (record := scorer(implementation, nfe))}


def student_row(
    method: str, teacher: Path, options: argparse.Namespace, scorer_of: Callable[..., Scorer]
) -> tuple[str, Records]:
    """The name of a method of distillation, and the records of its students by NFE."""
    found = {}
    for student in students(method, teacher, options.training_steps, options.nfe, options.logs / "few_steps"):
        scorer = scorer_of(str(student.run))
        found |= sampler_row(scorer, partial(ours, student.sampler, None), student.counts)[1]
    return f"student: {method}", found


def collect(rows: Sequence[Callable[[], tuple[str, Records]]]) -> dict[str, Records]:
    """The records of every row; what is not available is reported, once."""
    records: dict[str, Records] = {}
    skipped: set[str] = set()
    for make in rows:
        try:
            name, row = make()
        except (ImportError, Unavailable) as error:
            if str(error) not in skipped:
                print(f"skipped: {error}", flush=True)
            skipped.add(str(error))
            continue
        if row:
            records[name] = row
            print(name, *(f"{nfe}: {record['value']:.3f}" for nfe, record in row.items()), sep="  ", flush=True)
    return records


def protocol(records: Mapping[str, Records], options: argparse.Namespace, teacher: Path) -> str:
    """What was measured, and how the students were trained."""
    every = [record for row in records.values() for record in row.values()]
    lines = []
    if options.distil:
        costs = ", ".join(f"{name} {METHODS[name].evaluations}" for name in options.distil)
        lines = [
            f"Teacher: {teacher}.  Students: {options.training_steps:,} training steps for each method, with the batch "
            f"size of the teacher; network evaluations per image of a step: {costs}."
        ]
    several = f", each cell a mean over {options.seeds} sets with standard error {deviation(every):.1%}"
    real = f"; real images: {every[0]['real']:.2f}" if every and "real" in every[0] else ""
    return "\n".join([*lines, f"Fréchet distances of {options.samples} images{several * (options.seeds > 1)}{real}"])


def write(records: Mapping[str, Records], report: str, folder: Path) -> None:
    """Write the report, all records with their protocols, and the figure."""
    from diffusion_lab.plot.charts import curves

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "few_steps.md").write_text(f"{report}\n", encoding="utf-8")
    write_json(folder / "few_steps.json", dict(records))
    lines = {name: [(nfe, record["value"]) for nfe, record in row.items()] for name, row in records.items()}
    real = next((record.get("real") for row in records.values() for record in row.values()), None)
    curves(lines, folder / "few_steps.png", "network evaluations", "Fréchet distance", real)
    print(f"written to {folder}: few_steps.md, few_steps.json, few_steps.png", flush=True)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.few_steps", description=main.__doc__)
    found.add_argument(
        "run", nargs="?", help="directory of a run, a .ckpt file, or last; default: EDM trained on digits"
    )
    found.add_argument("--samples", type=int, default=1000, help="images per distance")
    found.add_argument("--seeds", type=int, default=3, help="distances averaged per cell, each of other images")
    found.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 12, 15, 20, 30, 50, 100], help="evaluations")
    found.add_argument("--sampler", nargs="+", default=OURS, help="of ours: 'dpm_solver spacing=karras' ...")
    found.add_argument("--peer", nargs="*", choices=[*PEERS, []], default=list(PEERS), help="of diffusers, or none")
    found.add_argument("--distil", nargs="*", choices=[*METHODS, []], default=[], help="methods that train students")
    found.add_argument("--training-steps", type=int, default=4000, help="of each method altogether")
    found.add_argument("--batch-size", type=int, default=1000, help="images generated at once")
    found.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    found.add_argument("--logs", type=Path, default=Path("logs"), help="where students, images and results are stored")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Distance of samplers of a model, and of students distilled from it, against network evaluations (NFE)."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    scorer_of = partial(
        Scorer.of, samples=options.samples, seeds=options.seeds, batch_size=options.batch_size, log_dir=options.logs
    )
    try:
        teacher = Path(options.run or default_teacher(options.logs))
        scorer = scorer_of(str(teacher))
    except (CheckpointError, Unavailable) as error:
        parser().error(str(error))
    variance = (scorer.model.config or {}).get("variance")
    makers = [partial(ours, sampler, variance) for sampler in options.sampler]
    makers += [partial(theirs, name) for name in options.peer]
    rows = [partial(sampler_row, scorer, make, options.nfe) for make in makers]
    rows += [partial(student_row, name, teacher, options, scorer_of) for name in options.distil]
    records = collect(rows)
    if not records:
        parser().error("nothing could be scored")
    values = {name: {nfe: record["value"] for nfe, record in row.items()} for name, row in records.items()}
    report = f"{table(values, options.nfe)}\n\n{protocol(records, options, teacher)}"
    write(records, report, options.logs / "few_steps")
    print(f"\n{report}")


if __name__ == "__main__":
    tolerant()
    main()
