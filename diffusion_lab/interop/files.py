"""Weights out of other programs' files; nothing that a file holds is ever executed."""

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
    """What a file holds: of which kind it is, its weights and their average by name (or in order), and its step."""

    kind: str
    raw: Named
    average: Named | list[Tensor] | None = None
    step: int | None = None


class Unread:
    """What stands for a number of numpy in an optimiser's state, and for its type: nothing here reads either."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


NUMPY = [(Unread, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")]
"""ScoreSDE's warm-up leaves such numbers. They are stood in for, so that numpy never builds what a file asks for."""


def read(path: Path) -> Any:
    """The contents of a file of torch, or of safetensors, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one line, if it is cut, of another kind, or holds more than tensors, numbers and containers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the checkpoint itself")
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        with torch.serialization.safe_globals(NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it is not a file of tensors"
        raise ValueError(f"{path} is refused, and nothing in it was executed: {what}") from error
    except Exception as error:  # foreign bytes fail in every way there is
        message = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read, it is cut or of another kind: {message}") from error


def find(contents: Any) -> Found:
    """The weights in what was read, in float32 and without the "module." that data parallelism adds.

    Raises:
        ValueError: if it is none of the containers below.
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
    """Weights under their plain names."""
    foreign = [name for name, weight in weights.items() if not isinstance(weight, Tensor)]
    if foreign or not weights:
        raise ValueError(f"{foreign[0]!r} in it is not a tensor: {EXPECTED}" if foreign else f"it is empty: {EXPECTED}")
    return {name.removeprefix("module."): weight.float() for name, weight in weights.items()}


def averaged(found: Found, order: Sequence[str]) -> Named:
    """The averaged weights by name; what the average lacks, being never trained, as it is in the raw ones.

    Args:
        order: names of the trained weights, in the order in which a nameless average lists them.

    Raises:
        ValueError: if a nameless average has another number of weights.
    """
    average = found.average or {}
    if isinstance(average, list):
        if len(average) != len(order):
            raise ValueError(f"its average has {len(average)} weights where this network trains {len(order)}")
        average = dict(zip(order, average, strict=True))
    return found.raw | average
