"""The page of a run or a sampling, from the files of its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_lab.page.chart import number, plus_minus, time_unit
from diffusion_lab.page.metrics_log import charts, read_columns
from diffusion_lab.page.picture import Picture, picture
from diffusion_lab.page.setting import groups
from diffusion_lab.storage.run_directory import RESULTS

MOST_STEPS, STEP_BYTES = 24, 150_000
"""Pictures of samples during training, evenly chosen, and the largest size of each."""

TERMS = {
    "flow": {
        "prior": "prior: -log p(x_1)",
        "volume": "log-determinant: -∫ div v dt",
        "bins": "dequantization: size of a grey level",
    },
    "bound": {
        "prior": "L_T: KL to the prior",
        "steps": "L_1 ... L_T-1: KL of the reverse steps",
        "decoder": "L_0: -log p(x_0 | x_1)",
    },
}
"""Names of the terms of a likelihood, by its method and their keys in results.json."""

PICTURES = {
    "control.png": "Guides and the samples controlled by them",
    "compare.png": "Quality by network evaluations, one line per sampler",
    "accuracy.png": "Accuracy at each noise level",
    "score_error.png": "Learned and true score",
    "mode_weights.png": "Weights of the modes, by sampler",
    "schedule.png": "Noise schedule: signal, noise and log signal-to-noise ratio by time",
}
"""Further pictures of a directory -> captions."""


class Command(NamedTuple):
    """A command and its purpose."""

    purpose: str
    line: str


@dataclass(frozen=True)
class Metric:
    """A row of results: value, error and score of real data as text, and details as (key, value)."""

    name: str
    value: str
    real: str
    direction: str
    details: Sequence[tuple[str, str]]
    terms: Sequence[tuple[str, str]]


def run_page(
    folder: Path, settings: Mapping[str, Any], recipe: Mapping[str, Any] | None, commands: Sequence[Command]
) -> dict[str, Any]:
    """What the template run.html shows of a directory.

    Args:
        settings: the resolved configuration of a training, or the specification of samples.
        recipe: the configuration of its groups without its other overrides, None if unknown.
    """
    results = _json(folder / RESULTS)
    columns = read_columns(folder / "metrics.csv")
    shown = groups(settings, recipe)
    done = int(max((points[-1][0] for points in columns.values()), default=results.get("step") or 0))
    return {
        "title": title(folder, settings),
        "folder": folder.absolute(),
        "facts": facts(settings, results, done),
        "steps": pictures_of_samples(folder, done),
        "animation": [picture(folder / "trajectory.gif", "From noise to samples"),
                 picture(folder / "trajectory.png", "From noise to samples, frame by frame")],
        "charts": charts(columns),
        "pictures": [made for name, caption in PICTURES.items() if (made := picture(folder / name, caption))],
        "metrics": [metric(name, record) for name, record in (results.get("metrics") or {}).items()],
        "results": results,
        "groups": shown,
        "changed": [one for group in shown.values() for one in group if one.differs],
        "recipe": recipe is not None,
        "overrides": settings.get("overrides") or (),
        "commands": commands,
    }  # fmt: skip


def title(folder: Path, settings: Mapping[str, Any]) -> str:
    """The model, the data and the directory's name."""
    choices = settings.get("choices") or settings
    named = [str(choices[key]) for key in ("model", "data") if isinstance(choices.get(key), str)]
    return f"{' · '.join(named)} — {folder.absolute().name}" if named else folder.absolute().name


def facts(settings: Mapping[str, Any], results: Mapping[str, Any], done: int) -> list[tuple[str, str]]:
    """The numbers at the top: (what, value)."""
    last, found = (settings.get("trainer") or {}).get("max_steps"), []
    if done:
        found.append(("steps", f"{done:,} of {last:,}" if last and last > 0 else f"{done:,}"))
    found += [(name, metric(name, record).value) for name, record in list((results.get("metrics") or {}).items())[:1]]
    for key, what, form in (
        ("parameters", "parameters", number),
        ("training_seconds", "training", duration),
        ("nfe", "network evaluations per sample", number),
        ("samples_per_second", "samples/s", number),
    ):
        if isinstance(results.get(key), int | float):
            found.append((what, form(results[key])))
    return found


def duration(seconds: float) -> str:
    """Format a time with its `time_unit`."""
    size, unit = time_unit(seconds)
    return f"{number(seconds / size)} {unit}"


def metric(name: str, record: Mapping[str, Any]) -> Metric:
    """A row of the table of results."""
    value, error, real = (record.get(key) for key in ("value", "standard_error", "real"))
    shown = "not finite" if value is None else f"{value:.4g}{plus_minus(error)}"
    protocol = {**(record.get("protocol") or {}), "weights": record.get("weights"), "nfe": record.get("nfe")}
    if "classes" in record:
        protocol["classes drawn"] = ", ".join(f"{label}: {count}" for label, count in record["classes"].items())
    names = TERMS.get(protocol.get("method"), {})
    return Metric(
        name,
        shown,
        "" if real is None else f"{real:.4g}",
        {"lower": "↓", "higher": "↑"}.get(record.get("better"), ""),
        [(key, str(one)) for key, one in protocol.items() if one is not None],
        [(names.get(term, term), f"{part:.4g}") for term, part in (record.get("terms") or {}).items()],
    )


def pictures_of_samples(folder: Path, done: int) -> list[Picture]:
    """The pictures of samples during training, in order, and at the end those of step `done`."""
    found = sorted(path for path in folder.glob("samples/step_*.png") if path.stem[5:].isdecimal())
    count = min(len(found), MOST_STEPS)
    chosen = [found[round(i * (len(found) - 1) / max(count - 1, 1))] for i in range(count)]
    shown = [picture(path, f"Samples at step {int(path.stem[5:]):,}", STEP_BYTES) for path in chosen]
    shown.append(picture(folder / "samples.png", f"Samples at step {done:,}" if done else "Samples"))
    return [one for one in shown if one]


def _json(path: Path) -> dict[str, Any]:
    """The contents of a JSON file; nothing if it is missing or another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
