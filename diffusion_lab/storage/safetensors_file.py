"""Exported files: weights as safetensors, and what describes them as JSON in the header; nothing in one is executed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab import first_edition
from diffusion_lab.errors import in_one_line
from diffusion_lab.storage.atomic_file import atomic_write
from diffusion_lab.storage.run_directory import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"

KEY = "diffusion_lab"
"""Key of our description in the metadata of the header."""

NETWORK = "denoiser.network."
"""Prefix of the names of a network's tensors in a model."""

LARGEST = 1 << 25
"""Bytes of a header that is read; the names of ten thousand tensors take 1 MB."""


def write(path: Path, weights: Mapping[str, Tensor], described: Mapping[str, Any] | None = None) -> None:
    """Write weights by name, with their description, atomically.

    Raises:
        NotWritten: if the file system refuses it.
    """
    import torch
    from safetensors.torch import save

    # Copies: two names of one tensor, and another memory format than the rows of its shape, are not allowed.
    copies = {name: w.detach().cpu().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
    more = {} if described is None else {KEY: json.dumps(encoded(described), allow_nan=False)}
    contents = save(copies, {"format": "pt", **more})
    with atomic_write(path, size=len(contents)) as file:
        file.write(contents)


def description(path: Path) -> dict[str, Any] | None:
    """The description in the header of an exported file, found without torch; None for other files of weights.

    Raises:
        CheckpointError: if the file is not in safetensors format, or the description is not ours.
    """
    found = header(path).get("__metadata__")
    text = found.get(KEY) if isinstance(found, dict) else None
    if text is None:
        return None
    try:
        described = decoded(json.loads(text))
        config, step = described["config"], described["step"]
        if not (isinstance(config, dict) and isinstance(config["model"], dict) and type(step) is int):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header holds no configuration of a model") from error
    return {**described, "config": first_edition.settings(config)}


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: names, types and shapes of its tensors, and metadata.

    Raises:
        CheckpointError: for another file.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(LARGEST, path.stat().st_size - 8):
                raise ValueError(f"a header of {size:,} bytes is announced")
            found = json.loads(file.read(size))
        if not isinstance(found, dict):
            raise ValueError("its header is not a table")
    except (OSError, ValueError, RecursionError) as error:
        reason = f": {error}" if type(error) is ValueError else ""
        raise CheckpointError(f"{path} is not a safetensors file, or is damaged{reason}") from error
    return found


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` has written with a description.

    Raises:
        CheckpointError: for a damaged one.
    """
    return path.suffix == SUFFIX and description(path) is not None


def read(path: Path) -> dict[str, Any]:
    """The contents of an exported file as those of a checkpoint; its one set of weights is both the raw and the EMA.

    `exported` says which of them it was.

    Raises:
        CheckpointError: if it is damaged, or weights without a configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    described = description(path)
    if described is None:
        raise CheckpointError(
            f"{path} holds weights without their configuration: convert it by diffusion-lab import {path} model=... "
            "data=..., which says what they are"
        )
    try:
        weights = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {in_one_line(error)}") from error
    average = {name.removeprefix(NETWORK): w for name, w in weights.items() if name.startswith(NETWORK)}
    return {
        "config": described["config"],
        "global_step": described["step"],
        "state_dict": weights,
        "ema": {"weights": average},
        "exported": described.get("weights"),
    }


def encoded(value: Any) -> Any:
    """Plain containers in which JSON's numbers suffice: a float that is not finite is {"float": "inf"}."""
    if isinstance(value, Mapping):
        return {str(key): encoded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(one) for one in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`."""
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            return float(value["float"])
        return {key: decoded(one) for key, one in value.items()}
    return [decoded(one) for one in value] if isinstance(value, list) else value
