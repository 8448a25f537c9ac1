"""Read weights from files of other programs; nothing in a file is executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

Named = dict[str, Tensor]


class Found(NamedTuple):
    """Contents of a file: its type, the weights, their EMA by name (or as an ordered list), and the step."""

    kind: str
    raw: Named
    average: Named | list[Tensor] | None = None
    step: int | None = None


class Ignored:
    """A stand-in for NumPy scalars and dtypes in an optimiser's state, which is not used."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


NUMPY = [(Ignored, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")]
"""NumPy's classes in checkpoints of ScoreSDE with warm-up, replaced so that NumPy does not unpickle anything."""


def read(path: Path) -> Any:
    """Return the contents of a torch or safetensors file, on the CPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, of another type, or holds more than tensors, numbers and containers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the checkpoint itself")
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        with torch.serialization.safe_globals(NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        requested = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it needs {requested[1]}" if requested else "it is not a file of tensors"
        raise ValueError(f"{path} is refused, and nothing in it was executed: {what}") from error
    except Exception as error:  # a file of another type can raise anything
        message = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read, it is truncated or of another type: {message}") from error


def find(contents: Any) -> Found:
    """Find the weights in the contents of a file; convert them to float32 and remove the prefix "module.".

    Raises:
        ValueError: if it is none of the formats below.
    """
    match contents:
        case {"model": dict(raw), "ema": {"shadow_params": list(average)}, "step": step}:
            found = Found("a checkpoint of ScoreSDE", raw, average, step)
        case [dict(raw), dict(), _, step, dict(average)]:
            found = Found("a checkpoint of NCSNv2 or DDIM", raw, average, step)
        case [dict(raw), dict(), _, step]:
            found = Found("a checkpoint of NCSNv2 or DDIM", raw, step=step)
        case [dict(raw), dict()]:
            found = Found("a checkpoint of NCSN", raw)
        case dict(raw):
            found = Found("weights by name", raw)
        case _:
            raise ValueError(f"it is not a checkpoint but a {type(contents).__name__}: {EXPECTED}")
    average = found.average
    return Found(
        found.kind,
        named(found.raw),
        named(average) if isinstance(average, dict) else average and [weight.float() for weight in average],
        found.step if isinstance(found.step, int) else None,
    )


EXPECTED = "expected one of ScoreSDE, NCSN, NCSNv2 or DDIM, or weights by name"


def named(weights: Mapping[str, Any]) -> Named:
    """Return float32 weights without the prefixes "module." and EDM's "model."."""
    foreign = [name for name, weight in weights.items() if not isinstance(weight, Tensor)]
    if foreign or not weights:
        raise ValueError(f"{foreign[0]!r} is not a tensor: {EXPECTED}" if foreign else f"it is empty: {EXPECTED}")
    return {name.removeprefix("module.").removeprefix("model."): weight.float() for name, weight in weights.items()}


def averaged(found: Found, order: Sequence[str]) -> Named:
    """Return the EMA weights by name; weights without EMA, which are not trained, are the raw ones.

    Args:
        order: names of the trained weights, in the order of an EMA that is a list.

    Raises:
        ValueError: if the list has another number of weights.
    """
    average = found.average or {}
    if isinstance(average, list):
        if len(average) != len(order):
            raise ValueError(f"its EMA has {len(average)} weights, but this network has {len(order)} trained ones")
        average = dict(zip(order, average, strict=True))
    return found.raw | average
