"""The directory that Hydra makes for a run, where the run is then refused."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

OURS = {".hydra", ".lock"}
"""What is written into a run directory before anything is known about the run."""


def remove_leftover(run_dir: Path, log_dir: Path) -> None:
    """Remove the directory of a refused run if it holds nothing else, and those up to `log_dir` that are empty then."""
    run_dir, log_dir = run_dir.absolute(), log_dir.absolute()
    with suppress(OSError):
        names = {path.name for path in run_dir.iterdir()}
        if names - OURS or (not names and log_dir not in run_dir.parents):
            return
        shutil.rmtree(run_dir)
        for folder in run_dir.parents:
            if folder != log_dir and log_dir not in folder.parents:
                return
            folder.rmdir()
