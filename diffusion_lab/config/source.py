"""The source that defines a name, found without importing it (torch takes seconds to import)."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import os
import sys
from pathlib import Path

from diffusion_lab.config.instantiate import PATH, named_in

PACKAGE = Path(__file__).resolve().parents[1]

LARGE = ("torch", "torchvision", "torchmetrics", "pytorch_lightning")
"""Packages in which annotations and base classes are not followed to other files: parsing them takes long."""

Definition = tuple[Path, ast.stmt]
"""The file and the statement that define a name."""


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def _module(dotted: str) -> Path | None:
    """The file of a module of this package or another one on the search path; nothing is imported."""
    top, *rest = dotted.split(".")
    root = _root(top)
    if root is None or root.is_file():
        return None if rest else root
    base = root.joinpath(*rest)
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@functools.cache
def _root(name: str) -> Path | None:
    """The folder of a package, or the file of a module."""
    if name == PACKAGE.name:
        return PACKAGE
    if not name or name in sys.stdlib_module_names:
        return None
    spec = importlib.machinery.PathFinder.find_spec(name, [*sys.path, *named_in(PATH), os.getcwd()])
    place = spec and next(iter(spec.submodule_search_locations or ()), spec.origin)
    return Path(place) if place and not place.endswith((".so", ".pyd")) else None


@functools.cache
def _imports(path: Path) -> dict[str, str]:
    """Names that a module imports, with their full names."""
    names = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{_origin(path, node)}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return names


def _origin(path: Path, node: ast.ImportFrom) -> str:
    """The full name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    folder = path.parents[node.level - 1]
    package = [folder.name]
    while (folder.parent / "__init__.py").is_file():
        folder = folder.parent
        package.insert(0, folder.name)
    return ".".join([*package, *([node.module] if node.module else [])])


def assigned(node: ast.stmt) -> str | None:
    """The name to which a statement assigns a value."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return getattr(target, "id", None) if getattr(node, "value", None) is not None else None


def _defined(path: Path, name: str) -> Definition | None:
    """The class or assignment of this name in a file."""
    found = (n for n in tree(path).body if (isinstance(n, ast.ClassDef) and n.name == name) or assigned(n) == name)
    return next(((path, node) for node in found), None)


def find(target: str) -> Definition | None:
    """The definition of a full name, followed through re-exports."""
    module, _, name = target.rpartition(".")
    path = _module(module)
    if path is None:
        return None
    origin = _imports(path).get(name, "")
    return _defined(path, name) or (None if origin == target else find(origin))


def named(path: Path, node: ast.expr) -> Definition | None:
    """The definition of a name, such as `X` or `module.X`, as it is used in a file."""
    text = ast.unparse(node)
    first, dot, others = text.partition(".")
    full = f"{_imports(path).get(first, first)}{dot}{others}"
    found = _defined(path, text)
    return found if found or {full.partition(".")[0], *path.parts} & {*LARGE} else find(full)
