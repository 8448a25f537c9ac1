"""Ranks that torchrun or SLURM has started: give all of them one run directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

import psutil

from diffusion_lab.config.environment import AGENT, cluster_ranks
from diffusion_lab.errors import ConfigError

RUN = "DIFFUSION_LAB_RUN"
"""Environment variable with the name of the run directory that ranks share."""

RANDOM = r"none|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Ids of torchrun that the user has not chosen: its default, or a random one."""


def agree(arguments: Sequence[str]) -> None:
    """Set one name for the run directory of all ranks, before each of them names it by its own clock.

    It is SLURM's job id or torchrun's --rdzv-id, so that a requeued job finds its run; without an id, the time at
    which torchrun was started.

    Raises:
        ConfigError: for torchrun on several nodes without an id, which share nothing but their arguments.
    """
    starter, _, count = cluster_ranks()
    if count == 1 or AGENT in os.environ or RUN in os.environ:
        return
    if starter == "srun":
        step = int(os.environ.get("SLURM_STEP_ID") or 0)
        os.environ[RUN] = f"slurm-{os.environ['SLURM_JOB_ID']}" + f"-{step}" * (step > 0)
    elif not re.fullmatch(RANDOM, os.environ["TORCHELASTIC_RUN_ID"]):
        os.environ[RUN] = f"torchrun-{os.environ['TORCHELASTIC_RUN_ID']}"
    elif int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
        began = time.localtime(psutil.Process(os.getppid()).create_time())
        os.environ[RUN] = time.strftime("%Y-%m-%d_%H-%M-%S", began)
    elif not any(argument.startswith("hydra.run.dir=") for argument in arguments):
        raise ConfigError("torchrun on several nodes: name the run by --rdzv-id=NAME or hydra.run.dir=DIR")
