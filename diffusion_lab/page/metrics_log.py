"""The curves of a run: metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lab.page.chart import Chart, Point

CURVES = {
    "train/loss": "loss",
    "val/loss": "validation loss",
    "train/learning_rate": "learning rate",
    "train/grad_norm": "gradient norm",
    "train/images_per_second": "images/s",
}
"""Columns of metrics.csv that come first -> titles of their charts."""

NO_CURVES = ("train/cpu_memory_gb", "train/gpu_memory_gb", "train/ema_decay")


def read_columns(path: Path) -> dict[str, list[Point]]:
    """The columns of metrics.csv, as points (step, value), without what is not a number, as in a truncated row."""
    columns: dict[str, list[Point]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(line.replace("\0", "") for line in file):
                for key, value in row.items():
                    if key and key != "step" and value:
                        with suppress(ValueError, TypeError):
                            columns.setdefault(key, []).append((float(row.get("step")), float(value)))
    return {key: found for key, found in columns.items() if found}


def charts(columns: Mapping[str, Sequence[Point]]) -> list[Chart]:
    """A chart of each column with two finite values or more; of names that continue another, only the shortest."""
    names = [*(key for key in CURVES if key in columns), *(key for key in columns if key not in {*CURVES, *NO_CURVES})]
    names = [key for key in names if not any(key.startswith(f"{other}_") for other in columns)]
    titles = {key: CURVES.get(key, key.removeprefix("eval/")) for key in names if is_curve(columns[key])}
    return [Chart(title, {title: columns[key]}) for key, title in titles.items()]


def common_charts(runs: Mapping[str, Mapping[str, Sequence[Point]]]) -> list[Chart]:
    """A chart of each of the first columns that two runs or more have, with a curve for each of them."""
    made = []
    for key, title in CURVES.items():
        lines = {name: columns[key] for name, columns in runs.items() if is_curve(columns.get(key, ()))}
        made += [Chart(title, lines)] if len(lines) > 1 else []
    return made


def is_curve(points: Sequence[Point]) -> bool:
    """Whether there are two finite values or more."""
    return sum(math.isfinite(y) for _, y in points) > 1
