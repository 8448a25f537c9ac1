"""Pictures on their way to every logger that shows pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_fabric.utilities.rank_zero import rank_zero_only

from diffusion_lab.storage.atomic_file import describe, refused


@runtime_checkable
class ShowsPictures(Protocol):
    """A logger that shows images (.png) and films (.gif)."""

    def log_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Show each picture under its name, at the optimiser step `step`."""


@contextmanager
def best_effort(path: Path) -> Iterator[None]:
    """Within, a file that cannot be made or written is left out, and a training continues.

    It is said once for each folder and cause, with the first such file.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        refusal = refused(error)
        cause = (path.parent, refusal.errno if refusal else type(error))
        if rank_zero_only.rank == 0 and cause not in _said:
            why = (
                describe(path, refusal)
                if refusal
                else f"{path}: {' '.join(str(error).split()) or type(error).__name__}"
            )
            print(f"{why}; left out, training continues", flush=True)
        _said.add(cause)


_said: set[tuple[Path, Any]] = set()


def log_pictures(loggers: Iterable[Any], pictures: Mapping[str, str | Path], step: int) -> None:
    """Show the pictures (name -> .png or .gif) that exist in every logger that can; a run need not write them all.

    Raises:
        ValueError: for a file of another kind.
    """
    paths = {name: Path(path) for name, path in pictures.items()}
    for name, path in paths.items():
        if path.suffix not in (".png", ".gif"):
            raise ValueError(f"{name}: {path} is not a picture that loggers can show; write a .png or a .gif")
    existing = {name: path for name, path in paths.items() if path.is_file()}
    for logger in loggers:
        if existing and isinstance(logger, ShowsPictures):
            logger.log_pictures(existing, step)
