"""Checkpoints: plain containers and tensors that hold the configuration and both sets of weights."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.report import say
from diffusion_lab.model import Model
from diffusion_lab.whole_file import whole_file

Weights = Literal["ema", "raw"]


class CheckpointError(ConfigError):
    """A checkpoint that cannot be found or read; the message is one line for the user."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves beside the target, flushes to the disk and renames, so that a `.ckpt` is always a whole file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run directory, newest first."""
    return sorted(run_dir.glob("checkpoints/*.ckpt"), reverse=True)


def newest_whole(found: Sequence[Path]) -> Path:
    """The first of the files that is whole; of those before it, it is said that they are passed over.

    Raises:
        CheckpointError: if none is.
    """
    for path in found:
        if zipfile.is_zipfile(path):  # a file that was cut has lost its end, where its table of contents is
            return path
        say(f"{path} is cut or damaged and passed over")
    raise CheckpointError(f"{found[0].parent} holds no whole checkpoint: {', '.join(path.name for path in found)}")


def find(path: str | Path, log_dir: str | Path = "logs") -> Path:
    """The checkpoint file that `path` means: a file, a run directory (its newest), or "last" (the newest run under
    log_dir).  A file that was cut gives way to the one before it, unless it is asked for by its own name.

    Raises:
        CheckpointError: if there is none.
    """
    if str(path) == "last":
        runs = sorted(Path(log_dir).glob("**/checkpoints"), key=lambda run: run.stat().st_mtime, reverse=True)
        found = [c for run in runs for c in checkpoints(run.parent)]
        if not found:
            raise CheckpointError(
                f"ckpt_path=last: no run with a checkpoint under {Path(log_dir).resolve()}; train one first"
            )
        return newest_whole(found)
    path = Path(path)
    if path.is_dir():
        found = checkpoints(path) or sorted(path.glob("*.ckpt"), reverse=True)
        if not found:
            raise CheckpointError(f"{path} holds no checkpoint: expected {path}/checkpoints/*.ckpt")
        return newest_whole(found)
    if not path.is_file():
        raise CheckpointError(f"ckpt_path={path} does not exist: give a run directory, a .ckpt file, or last")
    return path


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU; tensors and plain containers only, nothing in it is executed.

    Raises:
        CheckpointError: if it is cut, foreign, or holds anything else.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} is refused, it is no file of plain tensors and containers: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint, it is cut or of another kind: {error}"
        ) from error
    config = contents.get("config") if isinstance(contents, dict) else None
    if not (isinstance(config, dict) and "model" in config and "state_dict" in contents):
        raise CheckpointError(f"{path} is not a diffusion_lab checkpoint: it lacks a configuration or weights")
    return contents


def build(contents: dict[str, Any], weights: Weights = "ema") -> Model:
    """The model of a checkpoint that was read: rebuilt from its configuration, with the chosen weights, in eval mode.

    Raises:
        CheckpointError: if the weights asked for are not there or do not fit the configuration.
    """
    model = instantiate(contents["config"]["model"], "model")
    state = dict(contents["state_dict"])
    if weights == "ema":
        average = contents.get("ema", {}).get("weights")
        if not average:
            raise CheckpointError("the checkpoint holds no EMA weights: use weights=raw")
        state.update({f"denoiser.network.{name}": value for name, value in average.items()})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration: {error}") from error
    model.config = contents["config"]
    return model.eval()


def load(path: str | Path, *, weights: Weights = "ema", device: str | torch.device = "cpu") -> Model:
    """The model of a run directory, a checkpoint file, or "last", ready to `.sample(...)`.

    >>> model = diffusion_lab.load("logs/train/ddpm_digits/2026-11-21_10-00-00")
    >>> images = model.sample(16)
    """
    return build(read(find(path)), weights).to(device)
