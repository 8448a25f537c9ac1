"""Ranks that torchrun or SLURM has started: one directory for all of them, and how long ranks wait for each other."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import process

RUN, STARTER = "DIFFUSION_LAB_RUN", "DIFFUSION_LAB_STARTER"
"""Environment variables of ranks from outside: their one run directory's name, and the process that started them."""

DRAWN = r"none|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""An id of torchrun that nobody has chosen: its default, or one drawn at random."""


def agree(words: Sequence[str]) -> None:
    """Give ranks from outside one name for their run's directory, before each of them reads the clock for it.

    SLURM's job and torchrun's --rdzv-id name it, so that a job that is queued again finds its run; without an id, all
    ranks have in common when torchrun was started.

    Raises:
        ConfigError: for torchrun on several nodes, which have nothing in common but what they are told.
    """
    starter, _, count = cluster_ranks()
    if count == 1 or STARTER in os.environ:
        return
    parent = os.getppid()
    os.environ[STARTER] = f"{parent}-{process.status(parent)[1]}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if starter == "srun":
        step = int(os.environ.get("SLURM_STEP_ID") or 0)
        os.environ[RUN] = f"slurm-{os.environ['SLURM_JOB_ID']}" + f"-{step}" * (step > 0)
    elif not re.fullmatch(DRAWN, os.environ["TORCHELASTIC_RUN_ID"]):
        os.environ[RUN] = f"torchrun-{os.environ['TORCHELASTIC_RUN_ID']}"
    elif int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
        os.environ[RUN] = began(parent)
    elif not any(word.startswith("hydra.run.dir=") for word in words):
        raise ConfigError("torchrun on several nodes: name the run by --rdzv-id=..., or give it hydra.run.dir=...")


def began(pid: int) -> str:
    """When a process began, as the name of a directory."""
    if not process.PROC.is_dir():
        return f"torchrun-{pid}"
    boot = next(line for line in (process.PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    seconds = int(boot.split()[1]) + process.status(pid)[1] / os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(seconds))
