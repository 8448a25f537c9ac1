"""What the environment says of this process as one of several ranks, started by an agent of ours, torchrun or SLURM."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

AGENT = "DIFFUSION_LAB_AGENT"
"""Environment variable of ranks that `launch.agent` has started: the agent's process."""

STARTERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"),
    "srun": ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"),
}
"""What starts several ranks, by its environment variables: one that identifies it, the rank, and their number."""


def cluster_ranks() -> tuple[str, int, int]:
    """(what started this process as one of several ranks, its rank, their number); ("", 0, 1) if nothing did."""
    for starter, (mark, rank, count) in STARTERS.items():
        if mark in os.environ and rank in os.environ and int(os.environ.get(count, 1)) > 1:
            return starter, int(os.environ[rank]), int(os.environ[count])
    return "", 0, 1


def disagreement(config: Mapping[str, Any]) -> str | None:
    """Why a configuration does not fit the number of processes that were started from outside; None if it does."""
    starter, _, count = cluster_ranks()
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    asked, endpoint = len(devices) if isinstance(devices, list) else devices, trainer.get("rdzv_endpoint")
    if endpoint and not re.fullmatch(r"[^:/\s]+:\d+", endpoint):
        return f"trainer.rdzv_endpoint={endpoint} must be HOST:PORT"
    if not starter and nodes > 1 and not endpoint:
        same = "trainer.rdzv_endpoint=HOST:PORT and hydra.run.dir=DIR, the same on each node"
        return f"trainer.num_nodes={nodes} needs {same}"
    if not starter or not isinstance(asked, int) or asked < 1 or asked * nodes == count:
        return None
    return (
        f"{starter} has started {count} processes, and trainer.devices={devices} trainer.num_nodes={nodes} asks for "
        f"{asked * nodes}: set trainer.devices={count // nodes or 1}"
    )
