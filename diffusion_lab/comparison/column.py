"""Values of one metric, with a column for each protocol."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusion_lab.comparison.run import Run, distinguishing, number

MISSING = {"labels": "unconditional", "given": "unconditional"}
"""Value of a key that is missing in a protocol, if known."""

REAL = ("real", "training_images", "training_points")  # the latter two in files of older versions

NAMED = 6  # largest number of runs that a note lists by name


@dataclass(frozen=True)
class Cell:
    """A value; `error` is its standard error or, without one, the standard deviation of its repeats.

    `rank` is 1 for the best, None without a ranking; `count` is the number of seeds of a mean.
    """

    value: float
    error: float | None = None
    real: float | None = None
    rank: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Column:
    """Values of one metric under one protocol, None for a run without one.

    `detail` describes how the protocol differs from those of the metric's other columns; it is empty for a single one.
    """

    metric: str
    protocol: Mapping[str, Any]
    better: str
    extrapolated: bool
    cells: tuple[Cell | None, ...]
    detail: str = ""

    @property
    def conditions(self) -> dict[str, Any]:
        """Everything that must be equal for two values to be ranked together."""
        return {**self.protocol, "better": self.better, "extrapolated": self.extrapolated, **self.protocol}

    def condition(self, key: str) -> Any:
        """Return one condition; `...` if it was not recorded."""
        return self.conditions.get(key, MISSING.get(key, ...))

    @property
    def unranked(self) -> str:
        """Why values cannot be ranked; empty if they can."""
        if not self.protocol:
            return "no protocol recorded"
        return "" if self.better else "not recorded whether lower or higher is better"

    @property
    def reals(self) -> list[float]:
        """The distinct values of real data, in ascending order."""
        return sorted({cell.real for cell in self.cells if cell and cell.real is not None and math.isfinite(cell.real)})


def columns(runs: Sequence[Run], metric: str) -> list[Column]:
    """Return a column for each protocol of a metric, in order of first appearance."""
    found: list[Column] = []
    for index, run in enumerate(runs):
        if (record := run.metrics.get(metric)) is None:
            continue
        better = record.get("better") if record.get("better") in ("lower", "higher") else ""
        blank = (None,) * len(runs)
        new = Column(metric, record.get("protocol") or {}, better, bool(record.get("extrapolated")), blank)
        at = next((i for i, column in enumerate(found) if column.conditions == new.conditions), len(found))
        cells = list(found[at].cells if at < len(found) else blank)
        cells[index] = _cell(record)
        found[at : at + 1] = [replace(new, cells=tuple(cells))]
    details = _details(found)
    return [replace(c, cells=ranked(c, c.cells), detail=d) for c, d in zip(found, details, strict=True)]


def _cell(record: Mapping[str, Any]) -> Cell:
    value, error = number(record["value"]), number(record.get("standard_error"))
    repeats = [x for x in map(number, record.get("repeats") or ()) if x is not None]
    error = deviation(repeats) if error is None else error
    real = next((number(record[key]) for key in REAL if key in record), None)
    return Cell(math.nan if value is None else value, error, real)


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1); None for fewer than two values, or if one is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _details(found: Sequence[Column]) -> list[str]:
    if len(found) < 2:
        return [""] * len(found)
    known = [column for column in found if column.protocol]
    keys = distinguishing([{key: _text(value) for key, value in column.conditions.items()} for column in known])
    values = {key: shown([column.condition(key) for column in known]) for key in keys}
    details = iter([", ".join(f"{key} {values[key][i]}" for key in keys) for i in range(len(known))])
    return [next(details) if column.protocol else "no protocol" for column in found]


def ranked(column: Column, cells: Sequence[Cell | None]) -> tuple[Cell | None, ...]:
    """Return the cells with ranks; equal values have equal ranks; without two distinct values there is no rank."""
    sign = -1 if column.better == "higher" else 1
    values = [sign * cell.value for cell in cells if cell and math.isfinite(cell.value)]
    if column.unranked or len(set(values)) < 2:
        return tuple(cells)
    return tuple(
        replace(cell, rank=1 + sum(value < sign * cell.value for value in values))
        if cell and math.isfinite(cell.value)
        else cell
        for cell in cells
    )


def differences(parts: Sequence[Column], names: Sequence[str]) -> list[str]:
    """Return a note for each condition in which columns of one metric differ, and for each unranked column."""
    lines, known = [], [column for column in parts if column.protocol]
    for key in dict.fromkeys(key for column in known for key in column.conditions):
        runs: dict[str, list[str]] = {}
        for value, column in zip(shown([c.condition(key) for c in known]), known, strict=True):
            runs.setdefault(value, []).extend(_runs(column, names))
        if len(runs) > 1:
            sides = " against ".join(f"{value} ({_listed(some)})" for value, some in runs.items())
            lines.append(f"not ranked together: {key} {sides}")
    return lines + [f"not ranked: {c.unranked} ({_listed(_runs(c, names))})" for c in parts if c.unranked]


def _runs(column: Column, names: Sequence[str]) -> list[str]:
    return [name for name, cell in zip(names, column.cells, strict=True) if cell]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} runs"


def shown(values: Sequence[Any]) -> list[str]:
    """Format values; digests are shortened to eight characters if they remain distinct."""
    texts = [_text(value) for value in values]
    short = [re.sub(r"\b[0-9a-f]{16,}\b", lambda digest: digest[0][:8], text) for text in texts]
    return short if len(set(short)) == len(set(texts)) else texts


def _text(value: Any) -> str:
    if value is ...:
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
