"""Images and videos for all loggers that can show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_fabric.utilities.rank_zero import rank_zero_only

from diffusion_lab.storage.atomic_file import describe_write_error, file_system_error


@runtime_checkable
class ShowsPictures(Protocol):
    """A logger that shows images (.png) and videos (.gif)."""

    def log_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Log each image under its name at the optimiser step `step`."""


@contextmanager
def best_effort(path: Path) -> Iterator[None]:
    """Context in which a file that cannot be created or written is skipped, and training continues.

    The error is printed once for each folder and cause.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        refusal = file_system_error(error)
        cause = (path.parent, refusal.errno if refusal else type(error))
        if rank_zero_only.rank == 0 and cause not in _reported:
            why = (
                describe_write_error(path, refusal)
                if refusal
                else f"{path}: {' '.join(str(error).split()) or type(error).__name__}"
            )
            print(f"{why}; skipped, training continues", flush=True)
        _reported.add(cause)


_reported: set[tuple[Path, Any]] = set()


def log_pictures(loggers: Iterable[Any], pictures: Mapping[str, str | Path], step: int) -> None:
    """Log the existing ones of the images (name -> .png or .gif) in every logger that supports them.

    Raises:
        ValueError: for a file of another type.
    """
    paths = {name: Path(path) for name, path in pictures.items()}
    for name, path in paths.items():
        if path.suffix not in (".png", ".gif"):
            raise ValueError(f"{name}: {path} must be a .png or .gif file")
    existing = {name: path for name, path in paths.items() if path.is_file()}
    for logger in loggers:
        if existing and isinstance(logger, ShowsPictures):
            logger.log_pictures(existing, step)
