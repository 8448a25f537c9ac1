"""Checkpoints: plain containers and tensors that hold the configuration and both sets of weights."""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import Autoguidance
from diffusion_lab.launch import origin
from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.named_sampler import named_sampler
from diffusion_lab.launch.resume import CheckpointError, find
from diffusion_lab.model import Model
from diffusion_lab.whole_file import whole_file

Weights = Literal["ema", "raw"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves beside the target, flushes to the disk and renames, so that a `.ckpt` is always a whole file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        storages = [leaf.untyped_storage() for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)]
        with whole_file(Path(path), size=sum({s.data_ptr(): s.nbytes() for s in storages}.values())) as file:
            torch.save(checkpoint, file)


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU; tensors and plain containers only, nothing in it is executed.

    Raises:
        CheckpointError: if it is cut, foreign, or holds anything else.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to execute what is in the file
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f": it holds {found[1]}" if found else ""
        raise CheckpointError(f"{path} is refused, it is no file of plain tensors and containers{reason}") from error
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
        CheckpointError: if the weights asked for do not exist, are not there or do not fit the configuration.
    """
    if weights not in get_args(Weights):
        raise CheckpointError(f"weights={weights!r} must be {' or '.join(get_args(Weights))}")
    started = contents["config"].get(origin.RECORD)
    origin.admit(started)
    try:
        model = instantiate(contents["config"]["model"], "model")
    except ConfigError as error:
        raise CheckpointError(f"{error}{origin.lacking(started)}") from error
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
    model.sampler_of = functools.partial(named_sampler, contents["config"])
    return model.eval()


def device_of(name: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: for a name that means none, or one that this machine does not have.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each backend says in its own way that it is missing
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"device={name!r} is not on this machine: choose from {', '.join(found)}") from error
    return device


def load(path: str | Path, *, weights: Weights = "ema", device: str | torch.device = "cpu") -> Model:
    """The model of a run directory, a checkpoint file, or "last", ready to `.sample(...)`.

    >>> model = diffusion_lab.load("logs/train/ddpm_digits/2026-11-21_10-00-00")
    >>> images = model.sample(16)

    Raises:
        ValueError: for weights or a device that do not exist, and a path without a checkpoint that can be read.
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"load({path!r}): give the path of a run directory or a .ckpt file, or 'last'")
    device = device_of(device)
    return build(read(find(Path(path).expanduser())), weights).to(device)


class AutoguidanceOf(Autoguidance):
    """Autoguidance by the model of a checkpoint, which is read when it is needed first.

    Args:
        ckpt_path: a run directory or a checkpoint file.
        scale, interval: as of `Autoguidance`.
        weights: which of the checkpoint's.
    """

    def __init__(
        self,
        ckpt_path: str,
        scale: float = 1.5,
        interval: Sequence[float] | None = None,
        weights: Weights = "ema",
    ) -> None:
        super().__init__(functools.partial(_denoiser, ckpt_path, weights), scale, interval)


def _denoiser(path: str, weights: Weights) -> Denoiser:
    return load(path, weights=weights).denoiser.requires_grad_(False)
