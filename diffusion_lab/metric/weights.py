"""Reading a file of weights that somebody else wrote: nothing in it is executed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor


def read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors by name in the bytes of a file of torch (weights only) or, by its name, of safetensors.

    Raises:
        ValueError: in one line, if it is cut, or holds more than tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or cut file can break the parser in any way
        raise ValueError(f"{path} holds more than plain weights or is cut: refused, not executed") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: a mapping from names to tensors is expected")
    return dict(state)


def plain_file(state: dict[str, Tensor]) -> io.BytesIO:
    """A file in memory that holds these tensors and nothing else, for code that unpickles without restraint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
