"""The values of one metric, in one column for each protocol under which it was measured."""

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
"""What it means that a protocol lacks a key, where that is known."""

REAL = ("real", "training_images", "training_points")  # the later two in files of older versions

NAMED = 6  # a side with more runs is told by their number: the table's columns show which they are


@dataclass(frozen=True)
class Cell:
    """A value; `error` is its standard error or, without one, the standard deviation of its repeats.

    `rank` is 1 for the best, None where there is nothing to rank; `count` is how many seeds a mean is over.
    """

    value: float
    error: float | None = None
    real: float | None = None
    rank: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Column:
    """Values of one metric under one protocol, None for a run that has none.

    `detail` is what tells the protocol from those of the metric's other columns, empty if it is the only one.
    """

    metric: str
    protocol: Mapping[str, Any]
    better: str
    extrapolated: bool
    cells: tuple[Cell | None, ...]
    detail: str = ""

    @property
    def conditions(self) -> dict[str, Any]:
        """All that must be equal for two values to be ranked together."""
        return {**self.protocol, "better": self.better, "extrapolated": self.extrapolated, **self.protocol}

    def condition(self, key: str) -> Any:
        """One of them; `...` if it was not recorded."""
        return self.conditions.get(key, MISSING.get(key, ...))

    @property
    def unranked(self) -> str:
        """Why no value can be called better than another, empty where one can."""
        if not self.protocol:
            return "no protocol recorded"
        return "" if self.better else "not recorded whether lower or higher is better"

    @property
    def reals(self) -> list[float]:
        """What real data score: each different value once, in ascending order."""
        return sorted({cell.real for cell in self.cells if cell and cell.real is not None and math.isfinite(cell.real)})


def columns(runs: Sequence[Run], metric: str) -> list[Column]:
    """A column for each protocol under which the runs measured a metric, in the order in which they first appear."""
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
    """Standard deviation (n - 1) of finite values; None for fewer than two, or where one is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _details(found: Sequence[Column]) -> list[str]:
    if len(found) < 2:
        return [""] * len(found)
    known = [column for column in found if column.protocol]
    keys = distinguishing([{key: _text(value) for key, value in column.conditions.items()} for column in known])
    values = {key: shown([column.condition(key) for column in known]) for key in keys}
    words = iter([", ".join(f"{key} {values[key][i]}" for key in keys) for i in range(len(known))])
    return [next(words) if column.protocol else "no protocol" for column in found]


def ranked(column: Column, cells: Sequence[Cell | None]) -> tuple[Cell | None, ...]:
    """Cells of a column with their ranks; equal ones share one; all alike, or one alone, get none."""
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
    """What to say of each thing in which columns of one metric differ, and of each that cannot be ranked at all."""
    lines, known = [], [column for column in parts if column.protocol]
    for key in dict.fromkeys(key for column in known for key in column.conditions):
        owners: dict[str, list[str]] = {}
        for value, column in zip(shown([c.condition(key) for c in known]), known, strict=True):
            owners.setdefault(value, []).extend(_owners(column, names))
        if len(owners) > 1:
            sides = " against ".join(f"{value} ({_listed(own)})" for value, own in owners.items())
            lines.append(f"not ranked together: {key} {sides}")
    return lines + [f"not ranked: {c.unranked} ({_listed(_owners(c, names))})" for c in parts if c.unranked]


def _owners(column: Column, names: Sequence[str]) -> list[str]:
    return [name for name, cell in zip(names, column.cells, strict=True) if cell]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} runs"


def shown(values: Sequence[Any]) -> list[str]:
    """Values as words; digests are cut to eight characters where that leaves different ones different."""
    words = [_text(value) for value in values]
    cut = [re.sub(r"\b[0-9a-f]{16,}\b", lambda digest: digest[0][:8], word) for word in words]
    return cut if len(set(cut)) == len(set(words)) else words


def _text(value: Any) -> str:
    if value is ...:
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
