"""Modules of official programs, imported out of their clones so that nothing else in this process sees them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from diffusion_lab.bench.race import Absent, Setting


def clone(setting: Setting, program: str) -> Path:
    """Folder of an official program; Absent, in words, where there is none."""
    if setting.official is None:
        raise Absent(f"give the folder that holds a clone of {program} by --official")
    if not (folder := setting.official / program).is_dir():
        raise Absent(f"there is no {folder}, a clone of {program}")
    return folder


@contextmanager
def inside(setting: Setting, program: str, stand_ins: Mapping[str, ModuleType] | None = None) -> Iterator[None]:
    """Context in which imports look into the clone of a program first, for statements such as `from models import x`.

    Afterwards its modules are forgotten, so that each program's `models` is its own, and those before return.
    `stand_ins` are imported in place of packages that it names and that are not needed here.
    """
    folder, stand_ins = clone(setting, program), stand_ins or {}
    own = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"} | stand_ins.keys()
    before = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in own}
    for name in before:
        del sys.modules[name]
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(before)


def module(setting: Setting, program: str, name: str, stand_ins: Mapping[str, ModuleType] | None = None) -> ModuleType:
    """One module of a program, by its name in it; Absent where there is no clone."""
    with inside(setting, program, stand_ins):
        return importlib.import_module(name)
