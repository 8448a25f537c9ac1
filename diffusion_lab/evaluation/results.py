"""The file results.json of a run: every metric with its protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_lab.storage.atomic_file import atomic_write


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write `results` as JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())


def read_results(path: Path) -> dict[str, Any] | None:
    """Return the contents of a results.json; None if it is missing or another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("metrics"), dict) else None
