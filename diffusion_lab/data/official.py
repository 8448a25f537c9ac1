"""Files of a published data set: checked against their md5, downloaded if missing, never replaced or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.errors import in_one_line


def missing_error(path: Path, source: Path, md5: str) -> FileNotFoundError:
    """Return the error for a missing file, which names two remedies: download it, or copy its published source."""
    return FileNotFoundError(
        f"{path} is missing: set data.download=true, or put {source.name} (md5 {md5}) into {source.parent}"
    )


def refuse_damaged(path: Path, md5: str) -> None:
    """Raise ValueError if `path` exists and has another md5, for example because a copy was interrupted."""
    from torchvision.datasets.utils import calculate_md5

    if path.exists() and (found := calculate_md5(path)) != md5:
        raise ValueError(f"{path} is damaged (md5 {found}, not {md5}): remove it and download it again")


def fetch(path: Path, md5: str, mirrors: Sequence[str]) -> None:
    """Download `path` from the first of the `mirrors` (URLs ending in /) that works.

    The file gets its name only after its md5 is checked. Raises ConnectionError if no mirror works.
    """
    from torchvision.datasets.utils import download_url

    partial = path.with_name(f".{path.name}.partial")
    reasons = []
    for mirror in mirrors:
        try:
            download_url(f"{mirror}{path.name}", path.parent, partial.name, md5)
            partial.replace(path)
            return
        except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a wrong md5
            reasons.append(f"{mirror}: {in_one_line(error)}")
    raise ConnectionError(
        f"{path.name} (md5 {md5}) cannot be downloaded ({'; '.join(reasons)}): put it into {path.parent}"
    )
