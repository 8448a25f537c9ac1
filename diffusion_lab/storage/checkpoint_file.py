"""Checkpoint files: plain containers and tensors that hold the configuration and both sets of weights."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from diffusion_lab import first_edition
from diffusion_lab.storage import safetensors_file
from diffusion_lab.storage.atomic_file import atomic_write
from diffusion_lab.storage.run_directory import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save checkpoints atomically: a `.ckpt` is always complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        storages = [leaf.untyped_storage() for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)]
        with atomic_write(Path(path), size=sum({s.data_ptr(): s.nbytes() for s in storages}.values())) as file:
            torch.save(checkpoint, file)


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU; tensors and plain containers only, nothing in it is executed.

    Of an exported file (`safetensors_file.read`) as well, which holds no state of a training.

    Raises:
        CheckpointError: if it is cut, foreign, or holds anything else.
    """
    if Path(path).suffix == safetensors_file.SUFFIX:
        return safetensors_file.read(Path(path))
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to execute what is in the file
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f": it holds {found[1]}" if found else ""
        raise CheckpointError(f"{path} is refused, it is not a file of plain tensors and containers{reason}") from error
    except Exception as error:  # a file of another kind can raise anything
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint, it is cut or of another kind: {error}"
        ) from error
    config = contents.get("config") if isinstance(contents, dict) else None
    if not (isinstance(config, dict) and "model" in config and "state_dict" in contents):
        raise CheckpointError(f"{path} is not a diffusion_lab checkpoint: it lacks a configuration or weights")
    return {**contents, "config": first_edition.settings(config)}
