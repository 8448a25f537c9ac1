"""What a run says to the person who started it."""

from __future__ import annotations

import os
from typing import Any

from diffusion_lab.output import print_table, say, shown


def in_sweep() -> bool:
    """Whether this process works on a job of a sweep, which tells its results itself, all together."""
    return "DIFFUSION_LAB_JOB" in os.environ


def say_limits(evaluator: Any, data: Any, likelihood: bool) -> None:
    """Which numbers an evaluation will not take, and which say little, before anything is drawn."""
    for reason in evaluator.left_out(data, likelihood):
        say(f"left out: {reason}")
    for caution in evaluator.cautions(data):
        say(f"note: {caution}")


def table(results: dict[str, Any]) -> None:
    """The metrics of a results record, one row each, with what real data score where that is known."""
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for column in ("metric", "value", "real data"):
        right = column != "metric"
        grid.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for name, record in results["metrics"].items():
        error, real = record.get("standard_error"), record.get("real")
        value = f"{record['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")
        rows = [(name, value, "" if real is None else f"{real:.4g}")]
        rows += [(f"  {term}", f"{value:.4g}", "") for term, value in record.get("terms", {}).items()]
        for row in rows:
            grid.add_row(*(Text(shown(word)) for word in row))
    say(f"step {results['step']}, {results['weights']} weights, sampler {results['sampler']}")
    print_table(grid)
    for line in beside(results["metrics"]):
        say(line)


def beside(metrics: dict[str, Any]) -> list[str]:
    """What samples were held against, and how many fall into each class."""
    references = dict.fromkeys(record.get("protocol", {}).get("reference") for record in metrics.values())
    lines = [f"against {', '.join(found)}"] if (found := [str(name) for name in references if name]) else []
    for record in metrics.values():
        if "classes" in record:
            counts = " ".join(f"{label}:{count}" for label, count in record["classes"].items())
            lines.append(f"classes drawn: {len(record['classes'])} ({counts})")
    return lines
