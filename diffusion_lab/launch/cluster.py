"""Ranks that torchrun or SLURM has started: one directory for all of them, and how long ranks wait for each other."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from diffusion_lab.launch import process
from diffusion_lab.launch.instantiate import ConfigError

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
    starter, _, count = process.cluster_ranks()
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


def disagreement(config: Mapping[str, Any]) -> str | None:
    """Why a configuration does not fit the number of processes that were started from outside; None if it does."""
    starter, _, count = process.cluster_ranks()
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    asked = len(devices) if isinstance(devices, list) else devices
    if not starter or not isinstance(asked, int) or asked < 1 or asked * nodes == count:
        return None
    return (
        f"{starter} has started {count} processes, and trainer.devices={devices} trainer.num_nodes={nodes} asks for "
        f"{asked * nodes}: set trainer.devices={count // nodes or 1}"
    )


def cluster() -> list[Any]:
    """Lightning's plug-in for SLURM, if that has started us, without its own way to queue a job again.

    It would save in the middle of a step, and go on from that file whatever ckpt_path says.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if process.cluster_ranks()[0] == "srun" else []


def set_timeout(strategy: Any, seconds: float) -> None:
    """Let the ranks of one of Lightning's strategies wait for each other at most so long, once they are started.

    Raises:
        ConfigError: for a strategy of several ranks that knows no such limit.
    """
    if hasattr(strategy, "_timeout"):  # of all strategies that take it, as an argument
        strategy._timeout = timedelta(seconds=seconds)
    elif getattr(strategy, "num_processes", 1) > 1:
        raise ConfigError(f"trainer.strategy: {type(strategy).__name__} takes no trainer.timeout; use ddp")
