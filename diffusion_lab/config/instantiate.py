"""Building objects from configuration, without letting a configuration call anything it likes."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lab.config.imports import complete_torchmetrics
from diffusion_lab.errors import ConfigError

OURS = ("diffusion_lab.", "torch.", "pytorch_lightning.")
"""What is known to ask nothing of torchmetrics; see launch/imports.py."""

ALLOWED = ("diffusion_lab", "torch.optim", "torch.nn", "torchvision.transforms", "pytorch_lightning", "torchmetrics")
"""Packages whose classes a configuration may build."""

FURTHER = "DIFFUSION_LAB_PACKAGES"
"""Environment variable that names further packages, separated by commas: `my_package,other.models`.

A variable, and no key, because a configuration out of a downloaded checkpoint must not widen what it may build.
"""

PATH = "DIFFUSION_LAB_PATH"
"""Environment variable with directories in which those packages are looked for, besides Python's own; set by us."""


def instantiate(node: Any, path: str = "") -> Any:
    """Build the object that a plain configuration node describes, innermost first.

    `_target_` names a class, `_partial_: true` gives the class with its arguments instead of an object.  Only classes
    defined in `allowed_packages` are built: no function is ever called, so a configuration out of a downloaded
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
    refusal = refused(path, target)
    if not allowed(target):
        raise refusal
    module, _, name = target.rpartition(".")
    if not target.startswith(OURS):
        complete_torchmetrics()
    if not target.startswith(tuple(f"{package}." for package in ALLOWED)):
        look_further()
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        top = target.partition(".")[0]
        away = isinstance(error, ModuleNotFoundError) and error.name == top
        way = f": start where the folder {top} lies, or add its place, PYTHONPATH=..." if away else ""
        raise ConfigError(f"{path}._target_={target} does not exist ({error}){way}") from error
    if not (inspect.isclass(found) and allowed(f"{found.__module__}.{found.__qualname__}")):
        raise refusal
    return found


def allowed_packages() -> tuple[str, ...]:
    """`ALLOWED` and the packages that the environment names.

    Raises:
        ConfigError: for a name that is no package's.
    """
    further = [name.strip() for name in os.environ.get(FURTHER, "").split(",") if name.strip()]
    for name in further:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{FURTHER} names packages, separated by commas, but {name!r} is no name of a package")
    return (*ALLOWED, *further)


def look_further() -> None:
    """Have Python find the packages that the environment names, last, beside where the command was given."""
    for place in [*os.environ.get(PATH, "").split(os.pathsep), os.getcwd()]:
        if place and place not in sys.path:
            sys.path.append(place)


def allowed(name: str) -> bool:
    """Whether a configuration may build the class of this full name."""
    return any(name.startswith(f"{package}.") for package in allowed_packages())


def refused(path: str, target: str) -> ConfigError:
    """The refusal of a target that is not allowed, with what is."""
    return ConfigError(
        f"{path}._target_={target} is refused: only classes of {', '.join(allowed_packages())} are built from a "
        f"configuration; add a package of your own by the environment variable {FURTHER}=my_package"
    )
