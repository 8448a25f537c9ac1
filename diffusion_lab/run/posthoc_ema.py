"""Post-hoc EMA: from the power-function averages of a run to checkpoints with the EMA weights of other profiles."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.config.origin import command
from diffusion_lab.errors import as_config_error
from diffusion_lab.output import say
from diffusion_lab.power_function import Profile, coefficients, gamma_of
from diffusion_lab.storage import checkpoint_file
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

POOR = 0.1
"""Relative error of a profile above which a warning is printed."""

KEPT = ("config", "epoch", "global_step", "pytorch-lightning_version", "state_dict")
"""Entries of the run's checkpoint that the written ones hold too."""

State = dict[str, Any]
"""An average: its std, its number of updates and its weights by parameter name."""


def reconstruct(path: Path, stds: Sequence[float], out: Path | None = None) -> list[Path]:
    """Write a checkpoint with the EMA weights of each profile at the step of the checkpoint `path`; return the files.

    Raises:
        ConfigError: if a snapshot cannot be read, or a file cannot be written.
    """
    contents = checkpoint_file.read(path)
    newest, run_dir = contents["posthoc_averages"], path.parents[1]
    step = newest[0]["updates"]
    files = [file for file in sorted(run_dir.glob("ema/step_*.pt")) if int(file.stem[5:]) < step]
    stored = [Profile(gamma_of(one["std"]), one["updates"]) for states in (*map(read, files), newest) for one in states]
    wanted = [Profile(gamma_of(std), step) for std in stds]
    solved = [coefficients(stored, one) for one in wanted]
    averages = combine([c for c, _ in solved], files, newest)
    written = []
    for std, weights, one, (_, error) in zip(stds, averages, wanted, solved, strict=True):
        target = (out or run_dir / "ema") / f"std_{std:g}_step_{step:08d}.ckpt"
        ema = {"std": std, "updates": step, "error": error, "weights": weights}
        with as_config_error(OSError):
            AtomicCheckpointIO().save_checkpoint({**{key: contents[key] for key in KEPT}, "ema": ema}, target)
        written.append(target.resolve())
        report(one, std, error, len(stored), target)
    say(f"sample from it:  {command('sample', written[-1])}")
    return written


def read(file: Path) -> list[State]:
    """The averages of a snapshot.

    Raises:
        ConfigError: if it cannot be read.
    """
    errors = (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError)
    with as_config_error(*errors, message=f"{file} cannot be read as a snapshot of averages: {{}}; remove it"):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def combine(solved: Sequence[Tensor], files: Sequence[Path], newest: list[State]) -> list[dict[str, Tensor]]:
    """The sums of all averages with each vector of coefficients, summed in float64; one file is read at a time."""
    totals = [{k: torch.zeros_like(v, dtype=torch.float64) for k, v in newest[0]["weights"].items()} for _ in solved]
    index = 0
    for states in (*map(read, files), newest):
        for state in states:
            for total, c in zip(totals, solved, strict=True):
                for name, value in state["weights"].items():
                    total[name].add_(value.double(), alpha=c[index].item())
            index += 1
    return [{name: v.to(newest[0]["weights"][name].dtype) for name, v in total.items()} for total in totals]


def report(one: Profile, std: float, error: float, count: int, target: Path) -> None:
    """Print what was made, and a warning if the snapshots are too few for it."""
    say(f"std {std:g}: gamma {one.gamma:.4g}, from {count} averages, relative error {error:.2g}")
    say(f"written  {os.path.relpath(target)}")
    if error > POOR:
        say(
            f"warning: the stored averages are too few for std={std:g}; train with "
            f"callback.posthoc_ema.every_n_steps={max(int(2 * std * one.step), 1)} or less"
        )
