"""The page of a comparison: its table, plots, the samples of all runs side by side, and their curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from diffusion_lab.comparison.report import (
    PLOTTED,
    costs,
    count,
    grid,
    heading,
    marks,
    origin,
    protocol_lines,
    seeds_grid,
    value_text,
)
from diffusion_lab.comparison.table import Comparison
from diffusion_lab.page import PAGE, Chart, Panel, Picture, Row, common_charts, picture, read_columns, write_comparison
from diffusion_lab.storage.run_directory import CONFIG, REQUEST

PANELS, PICTURES, LINES = 12, 24, 8
"""Largest numbers of plots, of pictures, and of curves in a chart; the runs come in the order of the table."""


def write_page(result: Comparison | None, out: Path, jobs: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write `<out>/report.html` of a comparison, or of a sweep, whose jobs may have no results.

    Raises:
        OSError: if it cannot be written.
    """
    same = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    named = {Path(job["directory"]): " ".join(word for word in job["overrides"] if word not in same) for job in jobs}
    if result:
        named = {run.path.parent: name for name, run in zip(result.names, result.runs, strict=True)}
    pictures, seed = samples(named)
    shown = {
        "title": f"{len(result.runs)} runs, sorted by {result.by}" if result and result.by else f"{len(named)} runs",
        "folder": out.absolute(),
        "pictures": pictures,
        "seed": seed,
        "charts": curves(named),
        "jobs": [job_row(job, out, same) for job in jobs],
    }
    write_comparison({**shown, **(tables(result, out) if result else {})}, out / PAGE)


def tables(result: Comparison, out: Path) -> dict[str, Any]:
    """The tables and plots of a comparison."""
    headings, lines = grid(result)
    pages = [address(run.path.parent, out) for run in result.runs]
    rows = [Row(cells, page) for cells, page in zip(lines, pages, strict=False)]
    rows += [Row(cells, kind="real") for cells in lines[len(rows) :]]
    titles, means = seeds_grid(result) if result.seeds else ((), ())
    made, legend = panels(result)
    return {
        "headings": headings,
        "rows": rows,
        "marks": marks(result),
        "notes": result.notes,
        "seeds": (titles, [Row(cells) for cells in means]),
        "panels": made,
        "legend": legend,
        "protocols": protocol_lines(result),
        "origins": [(name, f"{run.place}{origin(run)}") for name, run in zip(result.names, result.runs, strict=True)],
    }


def panels(result: Comparison) -> tuple[list[Panel], str]:
    """A plot of each metric under each of its protocols, then of samples/s, NFE and training time; and their legend."""
    made = [
        Panel(
            heading(column),
            result.names,
            [cell and cell.value for cell in column.cells],
            [value_text(cell, column) for cell in column.cells],
            [cell and cell.error for cell in column.cells],
            [bool(cell) and cell.rank == 1 for cell in column.cells],
            column.reals,
        )
        for column in sorted(result.columns, key=lambda column: column.extrapolated)
    ]
    of_costs = [
        Panel(title, result.names, numbers, ["" if one is None else count(one) for one in numbers], bars=True)
        for key, (title, numbers) in costs(result.runs).items()
        if key in PLOTTED
    ]
    most, legend = PANELS - len(of_costs), []
    if any(cell and cell.rank for column in result.columns for cell in column.cells):
        legend.append("orange: the best under one protocol")
    if any(column.reals for column in result.columns):
        legend.append("dotted: real data")
    if len(made) > most:
        legend.append(f"{len(made) - most} more columns are in the table")
    return [*made[:most], *of_costs], " · ".join(legend)


def samples(named: Mapping[Path, str]) -> tuple[list[Picture], int | None]:
    """The samples of each run, and the seed of their noise if all have the same; otherwise the captions say it."""
    found = {folder: name for folder, name in named.items() if (folder / "samples.png").is_file()}
    seeds = {folder: seed_of(folder) for folder in found}
    common = next(iter(seeds.values())) if len(set(seeds.values())) == 1 else None
    made = []
    for folder, name in list(found.items())[:PICTURES]:
        of_seed = f", seed {seeds[folder]}" if common is None and seeds[folder] is not None else ""
        made.append(picture(folder / "samples.png", f"{name or folder.name}{of_seed}"))
    return [one for one in made if one], common


def seed_of(folder: Path) -> int | None:
    """The seed of samples.png: that of the training's callback, or of the sampling."""
    for name, keys in ((CONFIG, ("callback", "samples", "seed")), (REQUEST, ("seed",))):
        try:
            node = yaml.load((folder / name).read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            for key in keys:
                node = node[key]
            return node
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue
    return None


def curves(named: Mapping[Path, str]) -> list[Chart]:
    """Charts with a curve of each of the first runs that were trained."""
    found = {name or folder.name: folder for folder, name in named.items() if (folder / "metrics.csv").is_file()}
    return common_charts({name: read_columns(folder / "metrics.csv") for name, folder in list(found.items())[:LINES]})


def job_row(job: Mapping[str, Any], out: Path, same: set[str]) -> Row:
    """A row of the table of a sweep's jobs."""
    folder = Path(job["directory"])
    overrides = " ".join(word for word in job["overrides"] if word not in same)
    return Row([folder.name, overrides, job["status"], f"{job['seconds']:.0f}", job["note"]], address(folder, out))


def address(folder: Path, out: Path) -> str:
    """The relative address of a run's own page, empty if it has none."""
    return quote(os.path.relpath(folder / PAGE, out)) if (folder / PAGE).is_file() and folder != out else ""
