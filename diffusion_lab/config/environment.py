"""Ranks that torchrun or SLURM has started, as told by their environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

OUTSIDE = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"),
    "srun": ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"),
}
"""What starts several ranks from outside, by its environment variables: one that tells it, rank, their number."""


def cluster_ranks() -> tuple[str, int, int]:
    """(what started this process as one of several ranks, its rank, their number); ("", 0, 1) if nothing did."""
    for starter, (mark, rank, count) in OUTSIDE.items():
        if mark in os.environ and rank in os.environ and int(os.environ.get(count, 1)) > 1:
            return starter, int(os.environ[rank]), int(os.environ[count])
    return "", 0, 1


def of_another_rank() -> bool:
    """Whether this job's first rank on this machine has started this process, and has checked what it is to do."""
    return cluster_ranks()[2] == 1 and os.environ.get("LOCAL_RANK", "0") != "0"


def disagreement(config: Mapping[str, Any]) -> str | None:
    """Why a configuration does not fit the number of processes that were started from outside; None if it does."""
    starter, _, count = cluster_ranks()
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    asked = len(devices) if isinstance(devices, list) else devices
    if not starter or not isinstance(asked, int) or asked < 1 or asked * nodes == count:
        return None
    return (
        f"{starter} has started {count} processes, and trainer.devices={devices} trainer.num_nodes={nodes} asks for "
        f"{asked * nodes}: set trainer.devices={count // nodes or 1}"
    )
