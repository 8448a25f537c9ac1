"""Read a file of weights from an untrusted source without executing anything in it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor


def read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in the contents of a torch file (weights only) or, by its suffix, a safetensors file.

    Raises:
        ValueError: if it is truncated, or holds anything but tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious or truncated file can break the parser in any way
        raise ValueError(f"{path} holds more than plain weights or is truncated: refused, not executed") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a state dict: a mapping from names to tensors is expected")
    return dict(state)


def plain_file(state: dict[str, Tensor]) -> io.BytesIO:
    """Return a file in memory with only these tensors, for code that unpickles without restrictions."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
