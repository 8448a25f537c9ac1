"""What a run says to the person who started it."""

from __future__ import annotations

import sys
from typing import Any


def say(text: str) -> None:
    """One line on standard output, at once."""
    print(text, flush=True)


def table(results: dict[str, Any]) -> None:
    """The metrics of a results record, one row each, with what real data score where that is known."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=f"step {results['step']}, {results['weights']} weights, sampler {results['sampler']}")
    for column in ("metric", "value", "real data", "against"):
        grid.add_column(column, justify="right" if column in ("value", "real data") else "left")
    for name, record in results["metrics"].items():
        error = record.get("standard_error")
        real, reference = record.get("real"), record.get("protocol", {}).get("reference", "")
        grid.add_row(
            name,
            f"{record['value']:.4g}" + (f" ± {error:.2g}" if error is not None else ""),
            "" if real is None else f"{real:.4g}",
            reference,
        )
        if "terms" in record:
            for term, value in record["terms"].items():
                grid.add_row(f"  {term}", f"{value:.4g}", "", "")
        if "classes" in record:
            grid.add_row(
                "  classes drawn",
                f"{len(record['classes'])}",
                "",
                " ".join(f"{k}:{v}" for k, v in record["classes"].items()),
            )
    Console(file=sys.stdout, width=110).print(grid)
