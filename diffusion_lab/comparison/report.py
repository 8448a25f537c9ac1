"""Output of a comparison: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from diffusion_lab.comparison.column import Cell, Column, shown
from diffusion_lab.comparison.run import Run
from diffusion_lab.comparison.table import Comparison
from diffusion_lab.page import time_unit

LEGEND = (
    "↓ lower is better, ↑ higher is better; #1 is the best of its column, and no rank is given across columns.",
    "± standard error where a record has one, otherwise the standard deviation of its repeats.",
    "† extrapolated to infinitely many samples: never ranked with measured values.",
)
FIELDS = (
    *("run", "metric", "value", "standard_error", "rank", "better", "protocol_group", "extrapolated", "real_data"),
    *("weights", "nfe", "model", "data", "network", "sampler", "seed", "step", "parameters", "samples_per_second"),
    *("training_seconds", "revision", "place", "protocol"),
)


COSTS = {
    "samples_per_second": "samples/s",
    "nfe": "NFE",
    "training_seconds": "training",
    "step": "steps",
    "parameters": "parameters",
}
"""Key of a results file -> heading; costs are shown but not ranked."""
ORIGIN = ("checkpoint", "step", "weights", "parameters", "sampler", "seed", "revision")
PLOTTED = ("samples_per_second", "nfe", "training_seconds")
"""Costs that each run has a point for in a plot."""


def costs(runs: Sequence[Run]) -> dict[str, tuple[str, list[float | None]]]:
    """Return key -> (heading, value of each run) of every cost that a run has; times have the longest one's unit."""
    found = {}
    for key, title in COSTS.items():
        numbers = [run.number(key) for run in runs]
        known = [number for number in numbers if number is not None]
        if known and key == "training_seconds":
            size, unit = time_unit(max(known))
            title, numbers = f"{title} ({unit})", [None if number is None else number / size for number in numbers]
        if len(set(numbers)) > 1 or (known and key in PLOTTED):  # equal sizes need no column
            found[key] = (title, numbers)
    return found


def count(value: float) -> str:
    """Format with three digits, or all digits of a large number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def digits(value: float, precision: int = 4) -> str:
    """Format with `precision` significant digits, including trailing zeros, below 10,000 without an exponent."""
    shown = f"{value:#.{precision}g}".rstrip(".")
    return f"{float(shown):g}" if "e+" in shown and abs(value) < 1e4 else shown


def heading(column: Column) -> str:
    """Return the heading of a column: metric, direction, and detail of the protocol."""
    arrow = {"lower": " ↓", "higher": " ↑"}.get(column.better, "")
    return f"{column.metric}{'†' * column.extrapolated}{arrow}" + (f" ({column.detail})" if column.detail else "")


def value_text(cell: Cell | None, column: Column, seeds: int = 1) -> str:
    """Format a value with its error and rank, and the number of seeds if not all have one; "" for None."""
    if cell is None:
        return ""
    value = f"{digits(cell.value)}{'†' * column.extrapolated}"
    error = "" if cell.error is None or not math.isfinite(cell.value) else f" ± {digits(cell.error, 2)}"
    fewer = "" if cell.count == seeds else f" ({cell.count} of {seeds})"
    return value + error + fewer + ("" if cell.rank is None else f" #{cell.rank}")


def grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows as text: a row for each run and, if known, one for real data."""
    run_costs = costs(comparison.runs).values()
    rows = []
    for i, name in enumerate(comparison.names):
        cost_cells = ["" if numbers[i] is None else count(numbers[i]) for _, numbers in run_costs]
        rows.append([name, *(value_text(column.cells[i], column) for column in comparison.columns), *cost_cells])
    reals = [" to ".join(map(digits, dict.fromkeys(c.reals[:1] + c.reals[-1:]))) for c in comparison.columns]
    if any(reals):
        rows.append(["real data", *reals, *("" for _ in run_costs)])
    return ["run", *map(heading, comparison.columns), *(title for title, _ in run_costs)], rows


def seeds_grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of means and standard deviations over seeds, without empty columns."""
    used = [i for i, _ in enumerate(comparison.columns) if any(group.cells[i] for group in comparison.seeds)]
    rows = [
        [
            group.name,
            ", ".join(f"{seed:g}" for seed in group.seeds),
            *(value_text(group.cells[i], comparison.columns[i], len(group.seeds)) for i in used),
        ]
        for group in comparison.seeds
    ]
    return ["runs", "seeds", *(heading(comparison.columns[i]) for i in used)], rows


def marks(comparison: Comparison) -> list[str]:
    """Return the legend of the symbols that occur in the table."""
    text = " ".join(cell for row in grid(comparison)[1] for cell in row)
    return [LEGEND[0]] + [line for line in LEGEND[1:] if line[0] in text]


def markdown(comparison: Comparison) -> str:
    """Return the report: table, notes on what is not comparable, means over seeds, protocols, and paths."""
    order = f"sorted by {comparison.by}" if comparison.by else "no metric is common to all"
    blocks = [f"# {len(comparison.runs)} runs, {order}", _table(*grid(comparison)), "\n".join(marks(comparison))]
    if comparison.notes:
        blocks += ["## Not comparable", _list(comparison.notes)]
    if comparison.seeds:
        blocks += ["## Mean ± standard deviation over seeds", _table(*seeds_grid(comparison))]
    protocols = protocol_lines(comparison)
    if protocols:
        blocks += ["## Protocols", _list(f"{what}: {line}" for what, line in protocols)]
    runs = [f"{name}: `{run.place}`{origin(run)}" for name, run in zip(comparison.names, comparison.runs, strict=True)]
    return "\n\n".join([*blocks, "## Runs", _list(runs)]) + "\n"


def protocol_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """The protocol of each column; columns of an equal one are named together."""
    found: dict[str, list[str]] = {}
    for column in comparison.columns:
        if column.protocol:
            line = ", ".join(f"{key} {shown([value])[0]}" for key, value in column.protocol.items())
            found.setdefault(line, []).append(heading(column))
    return [(", ".join(headings), line) for line, headings in found.items()]


def origin(run: Run) -> str:
    """What a run's results were made from, as the end of a line."""
    return "".join(f", {key} {run.results[key]}" for key in ORIGIN if run.results.get(key) is not None)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(comparison: Comparison) -> str:
    """Return one line per run and metric, with everything that the value depends on; unknown fields are empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, FIELDS, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for index, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
        for column in comparison.columns:
            if (cell := column.cells[index]) is None:
                continue
            details = {k: v for k, v in run.metrics[column.metric].items() if k in ("weights", "nfe")}
            group = [c for c in comparison.columns if c.metric == column.metric].index(column)
            table.writerow(
                {
                    **run.results, **details, "run": name, "metric": column.metric, "value": cell.value,
                    "standard_error": cell.error, "rank": cell.rank, "better": column.better, "protocol_group": group,
                    "extrapolated": column.extrapolated, "real_data": cell.real, "place": run.place,
                    "protocol": json.dumps(column.protocol, sort_keys=True) if column.protocol else "",
                }
            )  # fmt: skip
    return text.getvalue()
