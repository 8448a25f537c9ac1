"""Pictures on their way to every logger that shows pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ShowsPictures(Protocol):
    """A logger that shows images (.png) and films (.gif)."""

    def log_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Show each picture under its name, at the optimiser step `step`."""


def log_pictures(loggers: Iterable[Any], pictures: Mapping[str, str | Path], step: int) -> None:
    """Show the pictures (name -> .png or .gif) that exist in every logger that can; a run need not write them all.

    Raises:
        ValueError: for a file of another kind.
    """
    paths = {name: Path(path) for name, path in pictures.items()}
    for name, path in paths.items():
        if path.suffix not in (".png", ".gif"):
            raise ValueError(f"{name}: {path} is no picture that a logger shows; write a .png or a .gif")
    existing = {name: path for name, path in paths.items() if path.is_file()}
    for logger in loggers:
        if existing and isinstance(logger, ShowsPictures):
            logger.log_pictures(existing, step)
