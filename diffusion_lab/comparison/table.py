"""Runs in order, with a column for each metric and protocol, means over seeds, and what cannot be compared."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from diffusion_lab.comparison.column import Cell, Column, columns, deviation, differences, ranked
from diffusion_lab.comparison.run import Run, names

IDENTITY = ("model", "data", "network", "parameters", "sampler", "weights", "checkpoint", "step", "revision")
"""Keys of a results file in which runs that differ only in their seed agree."""


@dataclass(frozen=True)
class Seeds:
    """Runs that differ only in their seed: in each column their mean, with the standard deviation as its error."""

    name: str
    seeds: tuple[float, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs in the order of metric `by`, their names, one column per metric and protocol, and what must be said."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[Seeds, ...]
    notes: tuple[str, ...]
    by: str | None


def compare(runs: Sequence[Run], by: str | None = None) -> Comparison:
    """Put runs side by side, the best by metric `by` first; None takes the first metric that all of them have.

    Values are ranked within one protocol only, and extrapolated ones never with measured ones.

    Raises:
        ValueError: for a metric that no run has.
    """
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    if by is None:
        by = next((metric for metric in metrics if all(metric in run.metrics for run in runs)), None)
    elif by not in metrics:
        close = get_close_matches(by, metrics, 1, cutoff=0.4)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"by={by}: no run has this metric{guess}; available: {', '.join(metrics) or 'none'}")
    if by is not None:
        own = columns(runs, by)
        runs = [runs[index] for index in sorted(range(len(runs)), key=lambda index: _standing(own, index))]
        metrics = [by, *(metric for metric in metrics if metric != by)]
    named, parts = names(runs), [columns(runs, metric) for metric in metrics]
    whole = [column for part in parts for column in part]
    notes = gathered([(part[0].metric, line) for part in parts for line in differences(part, named)])
    return Comparison(tuple(runs), tuple(named), tuple(whole), tuple(over_seeds(runs, whole)), tuple(notes), by)


def gathered(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Lines "heads: tail", one for each tail of the pairs (head, tail)."""
    heads: dict[str, list[str]] = {}
    for head, tail in lines:
        heads.setdefault(tail, []).append(head)
    return [f"{', '.join(own)}: {tail}" for tail, own in heads.items()]


def _standing(own: Sequence[Column], index: int) -> tuple[int, float]:
    """Sorts the runs by group, then by value; those that cannot be ranked stay in the order given."""
    for group, column in enumerate(own):
        if cell := column.cells[index]:
            sortable = math.isfinite(cell.value) and not column.unranked
            return group, cell.value * (-1 if column.better == "higher" else 1) if sortable else math.inf
    return len(own), math.inf


def over_seeds(runs: Sequence[Run], whole: Sequence[Column]) -> list[Seeds]:
    """Mean and standard deviation (n - 1) of runs that differ only in their seed, as far as their files tell."""
    groups: dict[str, dict[float | None, int]] = {}
    for index, run in enumerate(runs):
        group, seed = groups.setdefault(_identity(run), {}), run.number("seed")
        # The same seed twice is one measurement: the later directory's, which has nothing to do with its value.
        if seed not in group or run.path > runs[group[seed]].path:
            group[seed] = index
    first = [min(group.values()) for group in groups.values()]
    called = names([runs[i] for i in first], leave_out=("seed",)) if len(first) > 1 else ["all runs"] * len(first)
    several = [(name, group) for name, group in zip(called, groups.values(), strict=True) if len(group) > 1]
    table = []
    for column in whole:
        cells = [_mean([column.cells[index] for index in group.values()]) for _, group in several]
        # A mean over fewer seeds than the others is shown, not ranked.
        full = [
            cell if cell and cell.count == len(group) else None for cell, (_, group) in zip(cells, several, strict=True)
        ]
        table.append([rank or cell for rank, cell in zip(ranked(column, full), cells, strict=True)])
    return [
        Seeds(name, tuple(sorted(group)), tuple(cells[row] for cells in table))
        for row, (name, group) in enumerate(several)
    ]


def _identity(run: Run) -> str:
    """Equal for runs that differ only in their seed; without a seed, or without a model, no file tells that."""
    words = {key: value for key, value in run.overrides.items() if key != "seed"}
    message = run.number("seed") is not None and "model" in {*run.results, *words}
    alone = None if message else str(run.path)
    return json.dumps([alone, [run.results.get(key) for key in IDENTITY], words], sort_keys=True)


def _mean(cells: Sequence[Cell | None]) -> Cell | None:
    values = [cell.value for cell in cells if cell]
    return Cell(statistics.fmean(values), deviation(values), count=len(values)) if values else None
