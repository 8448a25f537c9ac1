"""What a machine computes once for all runs: files that can be deleted at any time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CACHE = "DIFFUSION_LAB_CACHE"
"""Environment variable: the directory of these files; by default ~/.cache/diffusion_lab."""


def machine_cache(kind: str) -> Path:
    """The directory of files of one kind; it need not exist or be writable."""
    try:
        return Path(os.environ.get(CACHE) or "~/.cache/diffusion_lab").expanduser() / kind
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "diffusion_lab" / kind
