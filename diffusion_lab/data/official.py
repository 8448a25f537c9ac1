"""Files of a published data set: each is whole or refused by name, and none is replaced or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def missing(path: Path, source: Path, md5: str) -> FileNotFoundError:
    """The error for a file that is not there, with the two ways out: a download, or its published source."""
    return FileNotFoundError(
        f"{path} is missing: set data.download=true, or put {source.name} (md5 {md5}) into {source.parent}"
    )


def refuse_damaged(path: Path, md5: str) -> None:
    """Raise ValueError if `path` exists with another digest, as after a copy that was cut short."""
    from torchvision.datasets.utils import calculate_md5

    if path.exists() and (found := calculate_md5(path)) != md5:
        raise ValueError(f"{path} is damaged (md5 {found}, not {md5}): move it away and fetch it again")


def fetch(path: Path, md5: str, mirrors: Sequence[str]) -> None:
    """Download `path` from the first of the `mirrors` (URLs ending in /) that works.

    It appears under its name only once whole and checked. Raises ConnectionError saying what to do instead.
    """
    from torchvision.datasets.utils import download_url

    partial = path.with_name(f".{path.name}.partial")
    reasons = []
    for mirror in mirrors:
        try:
            download_url(f"{mirror}{path.name}", path.parent, partial.name, md5)
            partial.replace(path)
            return
        except (OSError, RuntimeError) as error:  # RuntimeError: torchvision's word for a wrong digest
            reasons.append(f"{mirror}: {' '.join(str(error).split())}")
    raise ConnectionError(
        f"{path.name} (md5 {md5}) cannot be fetched ({'; '.join(reasons)}): put it into {path.parent}"
    )
