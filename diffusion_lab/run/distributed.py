"""What Lightning needs to know about the ranks: SLURM's environment and the timeout of collectives."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.run_directory import checkpoints, newest_complete

OF_RANKS = ("timeout", "max_restarts", "rdzv_endpoint")
"""Keys of group trainer that are no arguments of Lightning's Trainer."""


def cluster() -> list[Any]:
    """Lightning's plug-in for SLURM, if SLURM started this process, without Lightning's automatic requeueing.

    That would save in the middle of a step and resume from that file whatever ckpt_path says.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if cluster_ranks()[0] == "srun" else []


def set_timeout(strategy: Any, seconds: float) -> None:
    """Set the timeout of collectives of a Lightning strategy.

    Raises:
        ConfigError: for a strategy of several ranks without a timeout.
    """
    if hasattr(strategy, "_timeout"):  # every strategy that takes a timeout has it
        strategy._timeout = timedelta(seconds=seconds)
    elif getattr(strategy, "num_processes", 1) > 1:
        raise ConfigError(f"trainer.strategy: {type(strategy).__name__} takes no trainer.timeout; use ddp")


def after_restart(run_dir: Path) -> str | None:
    """The newest whole checkpoint of a run whose ranks torchelastic has restarted (trainer.max_restarts), else None."""
    found = checkpoints(run_dir) if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else []
    return str(newest_complete(found)) if found else None
