"""The command `python -m diffusion_lab.compare`: compare runs in a table and on a page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab import comparison
from diffusion_lab.cli import command
from diffusion_lab.comparison.page import write_page
from diffusion_lab.errors import ConfigError
from diffusion_lab.output import print_table, shown, width
from diffusion_lab.page import PAGE
from diffusion_lab.storage.run_directory import make_new_directory, named_run

if TYPE_CHECKING:
    from rich.table import Table

HELP = """\
Compare the metrics and costs of runs in one table, and on one page with plots, samples and curves.

  python -m diffusion_lab.compare RUN [RUN ...] [by=METRIC] [out=DIRECTORY]

RUN is a run's directory, a results.json, or a directory with runs below it, such as that of a sweep; last is the newest
run in ./logs.
  by=METRIC         sort the runs by this metric; default: the first metric that all of them have
  out=DIRECTORY     directory of report.html, comparison.md and comparison.csv; default: logs/comparison/DATE_TIME

Values are ranked if their protocols are equal; otherwise the differences are listed.
"""


@command(HELP, ValueError, OSError)
def main(arguments: Sequence[str]) -> None:
    """Compare as the arguments say."""
    paths, options = parse(arguments)
    new = Path("logs", "comparison", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    compare(paths, options.get("by"), Path(options["out"]) if "out" in options else new, "out" not in options)


def compare(
    paths: Sequence[str | Path], by: str | None, out: Path, new: bool = False, jobs: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Compare runs: print the table, and write it and the page to `out`, or a `new` directory named like it.

    Args:
        jobs: those of the sweep that the runs belong to, if there is one.

    Raises:
        ValueError: for a metric that no run has, or a damaged file.
        OSError: for runs that do not exist, or a file that cannot be written.
    """
    runs = [comparison.read(path) for path in comparison.find(paths)]
    result = comparison.compare(runs, by)
    out = make_new_directory(out) if new else out
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(comparison.markdown(result), encoding="utf-8")
    (out / "comparison.csv").write_text(comparison.csv_text(result), encoding="utf-8")
    show(result)
    write_page(result, out, jobs)
    for run in runs:
        if steps := comparison.missing_steps(run):
            print(f"not finished: {os.path.relpath(run.place)}, {steps}")
    for run in comparison.unfinished(paths):
        print(f"left out: {os.path.relpath(run)}, which holds no results.json (not finished, or not evaluated)")
    print(f"written to {os.path.relpath(out)}: {PAGE}, comparison.md, comparison.csv")


def parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return (runs, options) of a command line.

    Raises:
        ConfigError: for an unknown option, or no run.
    """
    paths, options = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in ("by", "out") and value:
            options[key] = value
        elif argument.startswith("-") or (equals and not Path(argument).exists()):
            close = get_close_matches(key.strip("-"), ("by", "out"), 1, cutoff=0.4)
            hint = f" (did you mean {close[0]}=...?)" if close else ""
            raise ConfigError(f"unknown option {argument}{hint}; the options are by=METRIC and out=DIRECTORY")
        else:
            paths.append(str(named_run(argument)))
    if not paths:
        raise ConfigError("give at least one run: see python -m diffusion_lab.compare --help")
    return paths, options


def show(result: comparison.Comparison) -> None:
    """Print the table, in parts if it is wider than the terminal, and the notes."""
    tables = parts(*comparison.grid(result), width())
    if result.seeds:
        tables += parts(*comparison.seeds_grid(result), width(), "mean ± standard deviation over seeds")
    for table in tables:
        print_table(table)
    for line in (*comparison.marks(result), *result.notes):
        print(line)


def parts(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, title: str = "") -> list[Table]:
    """Split a table into tables of at most `width` characters, each with the first column."""
    from rich.table import Table
    from rich.text import Text

    headings, rows, title = [*map(shown, headings)], [[*map(shown, row)] for row in rows], shown(title)
    columns = ["\n".join(fold(heading)) for heading in headings]
    sizes = [3 + max(map(len, [*columns[i].split("\n"), *(row[i] for row in rows)])) for i in range(len(headings))]
    first = min(sizes[0], width // 3)
    blocks: list[list[int]] = [[]]
    for index in range(1, len(columns)):
        if blocks[-1] and 1 + first + sum(sizes[i] for i in [*blocks[-1], index]) > width:
            blocks.append([])
        blocks[-1].append(index)
    tables = []
    for block in blocks:
        table = Table(title=Text(title) if title and not tables else None, title_justify="left")
        table.add_column(columns[0], max_width=first - 3, overflow="fold")
        for index in block:
            table.add_column(columns[index], justify="right", no_wrap=True)
        for row in rows:
            style = "dim" if row[0] == "real data" else ""
            best = [Text(row[i], style="bold" if row[i].endswith(" #1") else "") for i in block]
            table.add_row(Text(row[0]), *best, style=style)
        tables.append(table)
    return tables


def fold(heading: str, width: int = 18) -> list[str]:
    """Break a heading into lines at spaces and underscores."""
    lines = [""]
    for piece in re.findall(r"[^_ ]*[_ ]?", heading):
        if lines[-1] and (len(lines[-1]) + len(piece.rstrip()) > width or piece.startswith("(")):
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]
