"""Build objects from a configuration, without letting a configuration call arbitrary code."""

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
"""Packages that need no more of torchmetrics than `quick_imports` loads, and whose classes refuse arguments by a
TypeError or ValueError."""

ALLOWED = (
    "diffusion_lab",
    "torch.optim",
    "torch.nn",
    "torchvision.transforms",
    "pytorch_lightning",
    "torchmetrics",
    "deepinv.physics",
)
"""Packages whose classes a configuration may build."""

EXTRAS = {"deepinv": "inverse"}
"""Optional dependencies of a configuration, and the extra that installs each."""

FURTHER = "DIFFUSION_LAB_PACKAGES"
"""Environment variable that names additional packages, separated by commas: `my_package,other.models`.

It is not a key, because the configuration of a downloaded checkpoint must not extend what it may build.
"""

PATH = "DIFFUSION_LAB_PATH"
"""Environment variable with directories searched for those packages, besides sys.path; set by diffusion_lab."""


def instantiate(node: Any, path: str = "") -> Any:
    """Build the object that a plain configuration node describes, innermost first.

    `_target_` names a class, `_partial_: true` returns a functools.partial instead of an object.  Only classes
    defined in `allowed_packages` are built and no function is ever called, so the configuration of a downloaded
    checkpoint cannot run arbitrary code.

    Raises:
        ConfigError: for a target that is not allowed or does not exist, for arguments that its class refuses, and for
            any error of a class of the user.
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
    except Exception as error:
        told = isinstance(error, TypeError | ValueError)
        if isinstance(error, ConfigError) or (not told and node["_target_"].startswith(OURS)):
            raise
        name = "" if told else f"{type(error).__name__}: "
        raise ConfigError(f"{path}: {name}{' '.join(str(error).split())}") from error


def resolve(target: str, path: str = "") -> type:
    """The class that a `_target_` names.

    The module that defines it counts, not the path in `_target_`: `diffusion_lab.checkpoint.torch.load` is torch's.
    """
    refusal = refused(path, target)
    if not allowed(target):
        raise refusal
    module, _, name = target.rpartition(".")
    if not target.startswith(OURS):
        complete_torchmetrics()
    if not target.startswith(tuple(f"{package}." for package in ALLOWED)):
        extend_path()
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        top = target.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        advice = f": run in the directory that contains {top}, or add that to PYTHONPATH" if missing else ""
        if missing and top in EXTRAS:
            advice = f': pip install -e ".[{EXTRAS[top]}]" (or pip install {top})'
        raise ConfigError(f"{path}._target_={target} does not exist ({error}){advice}") from error
    if not (inspect.isclass(found) and allowed(f"{found.__module__}.{found.__qualname__}")):
        raise refusal
    return found


def named_in(variable: str) -> list[str]:
    """The packages (of FURTHER) or directories (of PATH) that an environment variable names."""
    separator = "," if variable == FURTHER else os.pathsep
    return [name.strip() for name in os.environ.get(variable, "").split(separator) if name.strip()]


def allowed_packages() -> tuple[str, ...]:
    """`ALLOWED` and the packages that the environment names.

    Raises:
        ConfigError: for an invalid package name.
    """
    further = named_in(FURTHER)
    for name in further:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{FURTHER} names packages, separated by commas, but {name!r} is not a package name")
    return (*ALLOWED, *further)


def extend_path() -> None:
    """Append to sys.path the directories of the packages that the environment names, and the current one."""
    for place in [*named_in(PATH), os.getcwd()]:
        if place not in sys.path:
            sys.path.append(place)


def allowed(name: str) -> bool:
    """Whether a configuration may build the class with this full name."""
    return any(name.startswith(f"{package}.") for package in allowed_packages())


def refused(path: str, target: str) -> ConfigError:
    """The error for a target that is not allowed, with what is allowed."""
    return ConfigError(
        f"{path}._target_={target} is refused: only classes of {', '.join(allowed_packages())} are built from a "
        f"configuration; add a package of your own by the environment variable {FURTHER}=my_package"
    )
