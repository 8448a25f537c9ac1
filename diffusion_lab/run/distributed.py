"""What Lightning needs to know of the ranks: SLURM's environment and how long they wait for each other."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.run_directory import checkpoints, newest_whole

OF_RANKS = ("timeout", "max_restarts", "rdzv_endpoint")
"""Keys of group trainer that are no arguments of Lightning's Trainer."""


def cluster() -> list[Any]:
    """Lightning's plug-in for SLURM, if that has started us, without its own way to queue a job again.

    It would save in the middle of a step, and go on from that file whatever ckpt_path says.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if cluster_ranks()[0] == "srun" else []


def set_timeout(strategy: Any, seconds: float) -> None:
    """Let the ranks of one of Lightning's strategies wait for each other at most so long, once they are started.

    Raises:
        ConfigError: for a strategy of several ranks that knows no such limit.
    """
    if hasattr(strategy, "_timeout"):  # of all strategies that take it, as an argument
        strategy._timeout = timedelta(seconds=seconds)
    elif getattr(strategy, "num_processes", 1) > 1:
        raise ConfigError(f"trainer.strategy: {type(strategy).__name__} takes no trainer.timeout; use ddp")


def after_restart(run_dir: Path) -> str | None:
    """The newest whole checkpoint of a run whose ranks torchelastic has restarted (trainer.max_restarts), else None."""
    found = checkpoints(run_dir) if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else []
    return str(newest_whole(found)) if found else None
