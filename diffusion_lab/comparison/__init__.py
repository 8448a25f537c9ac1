"""Comparison of runs: their metrics in one table, ranked if measured under the same protocol."""

from diffusion_lab.comparison.column import Cell, Column, columns, differences
from diffusion_lab.comparison.report import csv_text, grid, heading, markdown, marks, seeds_grid, value_text
from diffusion_lab.comparison.run import Run, distinguishing, find, missing_steps, names, read, unfinished
from diffusion_lab.comparison.table import Comparison, Seeds, compare

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Run",
    "Seeds",
    "columns",
    "compare",
    "csv_text",
    "differences",
    "distinguishing",
    "find",
    "grid",
    "heading",
    "markdown",
    "marks",
    "names",
    "read",
    "seeds_grid",
    "missing_steps",
    "unfinished",
    "value_text",
]
