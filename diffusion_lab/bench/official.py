"""Import modules of official programs from their clones, isolated from the rest of the process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from diffusion_lab.bench.benchmark import Setting, Unavailable


def clone(setting: Setting, program: str) -> Path:
    """Return the folder of an official program; raises Unavailable if it does not exist."""
    if setting.official is None:
        raise Unavailable(f"pass the folder with a clone of {program} as --official")
    if not (folder := setting.official / program).is_dir():
        raise Unavailable(f"{folder}, a clone of {program}, does not exist")
    return folder


@contextmanager
def inside(setting: Setting, program: str, stand_ins: Mapping[str, ModuleType] | None = None) -> Iterator[None]:
    """Context in which imports such as `from models import x` use the clone of a program first.

    On exit its modules are removed from sys.modules and the previous ones restored, so that each program has its own
    `models`.  `stand_ins` replace packages that it imports but that are not needed here.
    """
    folder, stand_ins = clone(setting, program), stand_ins or {}
    names = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"} | stand_ins.keys()
    before = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in names}
    for name in before:
        del sys.modules[name]
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(before)


def module(setting: Setting, program: str, name: str, stand_ins: Mapping[str, ModuleType] | None = None) -> ModuleType:
    """Return a module of a program; raises Unavailable without a clone."""
    with inside(setting, program, stand_ins):
        return importlib.import_module(name)
