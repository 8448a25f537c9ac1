"""Sorted runs, with a column for each metric and protocol, means over seeds, and notes on what is not comparable."""

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
"""Keys of a results file that are equal for runs that differ only in their seed."""


@dataclass(frozen=True)
class Seeds:
    """Runs that differ only in their seed: the mean of each column, with the standard deviation as its error."""

    name: str
    seeds: tuple[float, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs sorted by metric `by`, their names, one column per metric and protocol, and notes."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[Seeds, ...]
    notes: tuple[str, ...]
    by: str | None


def compare(runs: Sequence[Run], by: str | None = None) -> Comparison:
    """Compare runs, sorted by metric `by`, the best first; None takes the first metric that all of them have.

    Values are ranked only within one protocol, and extrapolated values separately from measured ones.

    Raises:
        ValueError: for a metric that no run has.
    """
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    if by is None:
        by = next((metric for metric in metrics if all(metric in run.metrics for run in runs)), None)
    elif by not in metrics:
        close = get_close_matches(by, metrics, 1, cutoff=0.4)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"by={by}: no run has this metric{hint}; available: {', '.join(metrics) or 'none'}")
    if by is not None:
        by_columns = columns(runs, by)
        runs = [runs[index] for index in sorted(range(len(runs)), key=lambda index: _sort_key(by_columns, index))]
        metrics = [by, *(metric for metric in metrics if metric != by)]
    named, parts = names(runs), [columns(runs, metric) for metric in metrics]
    table = [column for part in parts for column in part]
    notes = merged([(part[0].metric, line) for part in parts for line in differences(part, named)])
    return Comparison(tuple(runs), tuple(named), tuple(table), tuple(over_seeds(runs, table)), tuple(notes), by)


def merged(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Merge pairs (head, tail) with equal tails to lines "head, head: tail"."""
    heads: dict[str, list[str]] = {}
    for head, tail in lines:
        heads.setdefault(tail, []).append(head)
    return [f"{', '.join(some)}: {tail}" for tail, some in heads.items()]


def _sort_key(by_columns: Sequence[Column], index: int) -> tuple[int, float]:
    """Sort runs by column, then by value; runs that cannot be ranked stay in the given order."""
    for group, column in enumerate(by_columns):
        if cell := column.cells[index]:
            sortable = math.isfinite(cell.value) and not column.unranked
            return group, cell.value * (-1 if column.better == "higher" else 1) if sortable else math.inf
    return len(by_columns), math.inf


def over_seeds(runs: Sequence[Run], all_columns: Sequence[Column]) -> list[Seeds]:
    """Return mean and standard deviation (n - 1) of runs that differ only in their seed."""
    groups: dict[str, dict[float | None, int]] = {}
    for index, run in enumerate(runs):
        group, seed = groups.setdefault(_identity(run), {}), run.number("seed")
        # Of several runs with the same seed, take the last directory, a choice independent of the value.
        if seed not in group or run.path > runs[group[seed]].path:
            group[seed] = index
    first = [min(group.values()) for group in groups.values()]
    titles = names([runs[i] for i in first], leave_out=("seed",)) if len(first) > 1 else ["all runs"] * len(first)
    several = [(name, group) for name, group in zip(titles, groups.values(), strict=True) if len(group) > 1]
    table = []
    for column in all_columns:
        cells = [_mean([column.cells[index] for index in group.values()]) for _, group in several]
        # A mean over fewer seeds than the group has is shown but not ranked.
        complete = [
            cell if cell and cell.count == len(group) else None for cell, (_, group) in zip(cells, several, strict=True)
        ]
        table.append([rank or cell for rank, cell in zip(ranked(column, complete), cells, strict=True)])
    return [
        Seeds(name, tuple(sorted(group)), tuple(cells[row] for cells in table))
        for row, (name, group) in enumerate(several)
    ]


def _identity(run: Run) -> str:
    """Return a key that is equal for runs that differ only in their seed; unique if seed or model is not recorded."""
    overrides = {key: value for key, value in run.overrides.items() if key != "seed"}
    recorded = run.number("seed") is not None and "model" in {*run.results, *overrides}
    unique = None if recorded else str(run.path)
    return json.dumps([unique, [run.results.get(key) for key in IDENTITY], overrides], sort_keys=True)


def _mean(cells: Sequence[Cell | None]) -> Cell | None:
    values = [cell.value for cell in cells if cell]
    return Cell(statistics.fmean(values), deviation(values), count=len(values)) if values else None
