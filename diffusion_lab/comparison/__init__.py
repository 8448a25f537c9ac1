"""Runs side by side: their numbers in one table, ranked only where they were measured in the same way."""

from diffusion_lab.comparison.column import Cell, Column, columns, differences
from diffusion_lab.comparison.report import csv_text, draw, grid, heading, markdown, marks, seeds_grid, value_text
from diffusion_lab.comparison.run import Run, distinguishing, find, halfway, names, read, unfinished
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
    "draw",
    "find",
    "grid",
    "heading",
    "markdown",
    "marks",
    "names",
    "read",
    "seeds_grid",
    "halfway",
    "unfinished",
    "value_text",
]
