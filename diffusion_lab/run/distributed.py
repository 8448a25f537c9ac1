"""What Lightning needs to know about the ranks: SLURM's environment, and a restart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.storage.run_directory import checkpoints, newest_complete

OF_RANKS = ("timeout", "max_restarts", "rdzv_endpoint")
"""Keys of group trainer that are no arguments of Lightning's Trainer."""


def cluster() -> list[Any]:
    """Lightning's plug-in for SLURM, if SLURM started this process, without Lightning's automatic requeueing.

    That would save in the middle of a step and resume from that file whatever ckpt_path says.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if cluster_ranks()[0] == "srun" else []


def after_restart(run_dir: Path) -> str | None:
    """The newest whole checkpoint of a run whose ranks torchelastic has restarted (trainer.max_restarts), else None."""
    found = checkpoints(run_dir) if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else []
    return str(newest_complete(found)) if found else None
