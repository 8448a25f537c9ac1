"""The file results.json of a run: every metric with its protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_results(path: Path) -> dict[str, Any] | None:
    """Return the contents of a results.json; None if it is missing or another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("metrics"), dict) else None
