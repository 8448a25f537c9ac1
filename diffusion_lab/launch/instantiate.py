"""Building objects from configuration, without letting a configuration call anything it likes."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

ALLOWED = ("diffusion_lab", "torch.optim", "torch.nn", "torchvision.transforms", "pytorch_lightning", "torchmetrics")
"""Packages whose classes a configuration may build."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the user."""


def instantiate(node: Any, path: str = "") -> Any:
    """Build the object that a plain configuration node describes, innermost first.

    `_target_` names a class, `_partial_: true` gives the class with its arguments instead of an object.  Only classes
    defined in `ALLOWED` packages are built: no function is ever called, so a configuration out of a downloaded
    checkpoint or from the command line cannot run code of its own choosing.

    Raises:
        ConfigError: for a target that is not allowed or does not exist, and for arguments that its class refuses.
    """
    if isinstance(node, Mapping):
        built = {k: instantiate(v, f"{path}.{k}".lstrip(".")) for k, v in node.items() if k[0] != "_"}
        return _build(node, built, path) if "_target_" in node else built
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [instantiate(v, f"{path}[{i}]") for i, v in enumerate(node)]
    return node


def _build(node: Mapping[str, Any], arguments: dict[str, Any], path: str) -> Any:
    cls = resolve(node["_target_"], path)
    try:
        inspect.signature(cls).bind_partial(**arguments)
        return functools.partial(cls, **arguments) if node.get("_partial_") else cls(**arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: {error}") from error


def resolve(target: str, path: str = "") -> type:
    """The class a `_target_` names.

    The place where it is defined counts, not the path it was reached by: `diffusion_lab.checkpoint.torch.load` is
    torch's.
    """
    refusal = ConfigError(
        f"{path}._target_={target} is refused: only classes of {', '.join(ALLOWED)} are built from a configuration"
    )
    if not _allowed(target):
        raise refusal
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={target} does not exist ({error})") from error
    if not (inspect.isclass(found) and _allowed(f"{found.__module__}.{found.__qualname__}")):
        raise refusal
    return found


def _allowed(name: str) -> bool:
    return any(name.startswith(f"{package}.") for package in ALLOWED)
