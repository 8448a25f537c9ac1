"""Several ranks of a run, started by our agent, torchrun or SLURM, read from their environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

AGENT = "DIFFUSION_LAB_AGENT"
"""Environment variable of ranks that `launch.agent` has started: the agent's process id."""

LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"),
    "srun": ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"),
}
"""Launchers and their environment variables: one that identifies it, the rank, the number of ranks."""


def local_ranks(trainer: Mapping[str, Any]) -> int | None:
    """The number of ranks on each machine, as `devices` of group trainer says; None where the machine decides."""
    devices = trainer.get("devices")
    if isinstance(devices, Sequence) and not isinstance(devices, str):  # GPUs by number
        return len(devices) or None
    return int(devices) or None if str(devices).isdecimal() else None


def cluster_ranks() -> tuple[str, int, int]:
    """(launcher, rank, number of ranks) of this process; ("", 0, 1) for a single process."""
    for starter, (mark, rank, count) in LAUNCHERS.items():
        if mark in os.environ and rank in os.environ and int(os.environ.get(count, 1)) > 1:
            return starter, int(os.environ[rank]), int(os.environ[count])
    return "", 0, 1


def disagreement(config: Mapping[str, Any]) -> str | None:
    """Why a configuration does not fit the number of ranks started by an external launcher; None if it does."""
    starter, _, count = cluster_ranks()
    trainer = config.get("trainer") or {}
    local, nodes, endpoint = local_ranks(trainer), trainer.get("num_nodes") or 1, trainer.get("rdzv_endpoint")
    if endpoint and not re.fullmatch(r"[^:/\s]+:\d+", endpoint):
        return f"trainer.rdzv_endpoint={endpoint} must be HOST:PORT"
    if not starter and nodes > 1 and not endpoint:
        same = "trainer.rdzv_endpoint=HOST:PORT and hydra.run.dir=DIR, the same on each node"
        return f"trainer.num_nodes={nodes} needs {same}"
    if not starter or local is None or local * nodes == count:
        return None
    return (
        f"{starter} started {count} processes, but trainer.devices={trainer['devices']} trainer.num_nodes={nodes} "
        f"means {local * nodes}: set trainer.devices={count // nodes or 1}"
    )
