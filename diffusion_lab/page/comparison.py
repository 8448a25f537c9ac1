"""The page of a comparison: tables, plots, pictures side by side and curves, each left out if it is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_lab.page.render import write

EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("headings", "rows", "marks", "notes", "panels", "legend", "pictures", "charts"), ()),
    **dict.fromkeys(("jobs", "protocols", "origins"), ()),
    "seeds": ((), ()),
    "seed": None,
    "plot": None,
}
"""What a page may be without."""


class Row(NamedTuple):
    """A row of a table: its cells, the address of a run's own page, and its CSS class."""

    cells: Sequence[str]
    page: str = ""
    kind: str = ""


def write_comparison(values: Mapping[str, Any], path: Path) -> None:
    """Write the page of `title`, `folder` and the other values of the template comparison.html that there are.

    Raises:
        OSError: if it cannot be written.
    """
    write("comparison.html", {**EMPTY, **values}, path)
