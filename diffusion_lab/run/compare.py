"""One checkpoint, many samplers: quality against the number of network evaluations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric
from omegaconf import DictConfig

from diffusion_lab import ranks
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.named_sampler import sampler_settings
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import Evaluator, SampleStore
from diffusion_lab.model import Model
from diffusion_lab.output import say
from diffusion_lab.page import PAGE, Row, picture, write_comparison
from diffusion_lab.plot.charts import curves
from diffusion_lab.run.page import attempted
from diffusion_lab.run.sample_spec import SampleSpec, claim, folder
from diffusion_lab.sampler import Sampler
from diffusion_lab.storage.atomic_file import write_json


class Point(NamedTuple):
    """One sampler of a comparison; steps is None for a sampler without a number of steps."""

    name: str
    steps: int | None
    settings: dict[str, Any]
    sampler: Sampler


def sample_store(
    point: Point, wanted: SampleSpec, model: Model, log_dir: str | Path, write: bool = True
) -> SampleStore:
    """The sample store of one sampler, in the directory that sampling with it alone would use, made if `write`."""
    spec = {**wanted, "sampler": point.settings}
    place = folder(spec, point.name, log_dir, None)
    if write:
        ranks.on_first(lambda: claim(place, spec))
    return SampleStore(place, model, point.sampler, spec["seed"], spec["batch_size"])


def planned(config: DictConfig, model: Model, quiet: bool = False) -> list[Point]:
    """Every sampler of the list `compare`, with every number of steps.

    Raises:
        ConfigError: for a sampler that does not exist or cannot sample from the model's noise process.
    """
    points = []
    names = [config.compare] if isinstance(config.compare, str) else config.compare
    counts = [config.compare_steps] if isinstance(config.compare_steps, int) else config.compare_steps
    for name in names:
        settings = sampler_settings(name, config.variance)
        for steps in counts if "steps" in settings else [None]:
            settings_of_point = settings if steps is None else {**settings, "steps": steps}
            sampler = instantiate(settings_of_point, "sampler")
            try:
                sampler.check(model.denoiser)
            except ValueError as error:
                if not quiet:
                    say(f"left out  {name} with {steps} steps: {error}")
                continue
            points.append(Point(name, steps, settings_of_point, sampler))
    if not points:
        raise ConfigError("compare: no sampler of the list can sample from this model")
    return points


def compare(
    config: DictConfig, fabric: Fabric, wanted: SampleSpec, model: Model, evaluator: Evaluator, data: Any
) -> tuple[dict[str, float], Path]:
    """Sample and score with every sampler from the same noise; write compare.json and compare.png, print the table.

    Each point's samples live in the directory that sampling with that sampler alone would use: `wanted` is the spec of
    one of them.  Returns the values, by names that contain the sampler, and the path of the plot.
    """
    records: list[dict[str, Any]] = []
    points = planned(config, model)
    samplers = {f"{name}{steps or ''}": settings for name, steps, settings, _ in points}
    compared = {**wanted, "sampler": samplers, "samples": evaluator.samples}
    out = folder(compared, "compare", config.paths.log_dir, config.out)
    for point in points:
        name, steps = point.name, point.steps
        series = sample_store(point, wanted, model, config.paths.log_dir)
        try:
            with fabric.autocast():
                series.complete(evaluator.total, evaluator.features, evaluator.total)
        except (ValueError, RuntimeError) as error:
            if fabric.is_global_zero:
                say(f"left out  {name} with {steps or 'its'} steps: {error}")
            continue
        found = evaluator.quality(series, data)
        calls, rate = series.cost(evaluator.total)
        records += [
            {"sampler": name, "steps": steps, "nfe": calls, "samples_per_second": rate, "metric": metric, **record}
            for metric, record in found.items()
        ]
        if fabric.is_global_zero:
            shown = ", ".join(f"{metric} {record['value']:.4g}" for metric, record in list(found.items())[:2])
            say(f"{name:<22} steps {steps or '-':>5}   nfe {calls:>6g}   {rate:>8.1f}/s   {shown}")
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "compare.json", {"checkpoint": str(config.ckpt_path), "points": records})
    if not records:
        raise ConfigError("compare: no sampler of the list gave samples that could be scored")
    if fabric.is_global_zero:
        draw(records, out / "compare.png")
        page = f", {PAGE}" if config.get("report", True) and write_page(records, str(config.ckpt_path), out) else ""
        say(f"written to {os.path.relpath(out)}: compare.json, compare.png{page}")
    values = {f"sample/{r['sampler']}_nfe{r['nfe']:g}/{r['metric']}": r["value"] for r in records}
    return values, out / "compare.png"


def write_page(records: list[dict[str, Any]], checkpoint: str, out: Path) -> bool:
    """Write the page of compared samplers; return whether it is written."""
    points: dict[tuple[str, Any], dict[str, str]] = {}
    for record in records:
        cells = points.setdefault((record["sampler"], record["steps"]), {})
        cells |= {"NFE": f"{record['nfe']:g}", "samples/s": f"{record['samples_per_second']:,.1f}"}
        cells[record["metric"]] = f"{record['value']:.4g}"
    headings = list(dict.fromkeys(key for cells in points.values() for key in cells))
    rows = [
        Row([f"{name}\N{NO-BREAK SPACE}{steps}" if steps else name, *map(cells.get, headings)])
        for (name, steps), cells in points.items()
    ]
    shown = {
        "title": "Samplers compared",
        "folder": out.absolute(),
        "headings": ["sampler, steps", *headings],
        "rows": rows,
        "plot": picture(out / "compare.png", "Quality by network evaluations, one line per sampler"),
        "origins": [("checkpoint", checkpoint)],
        "protocols": [
            (record["metric"], ", ".join(f"{key} {value}" for key, value in record["protocol"].items()))
            for record in {record["metric"]: record for record in records}.values()
        ],
    }
    return attempted(lambda: write_comparison(shown, out / PAGE), out / PAGE)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Plot the first metric against network evaluations, one line per sampler."""
    first = records[0]["metric"]
    lines = {
        name: [(r["nfe"], r["value"]) for r in records if r["sampler"] == name and r["metric"] == first]
        for name in dict.fromkeys(r["sampler"] for r in records)
    }
    curves(lines, path, x="network evaluations", y=first, level=records[0].get("real"))
