"""What a configuration node may hold, read from its class's signature without importing it (torch takes seconds)."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class: its annotation in words, the types and the options it admits (None: anything)."""

    annotation: str
    types: tuple[type, ...] | None
    options: tuple[str | int, ...] | None
    required: bool


@functools.cache
def parameters(target: str) -> dict[str, Parameter] | None:
    """Parameters of a class of this package by name; None if there is no such class."""
    found = _find(target)
    return None if found is None else _of_class(*found)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module(dotted: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*dotted.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.Module) -> dict[str, str]:
    """Names that a module imports, with where they come from."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def _find(target: str) -> tuple[Path, ast.stmt] | None:
    """The file and the statement that define a name of this package, followed through re-exports."""
    module, _, name = target.rpartition(".")
    path = _module(module)
    if path is None or not target.startswith(f"{PACKAGE.name}."):
        return None
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return path, node
    return _find(_imports(tree).get(name, ""))


def _of_class(path: Path, node: ast.stmt) -> dict[str, Parameter] | None:
    if not isinstance(node, ast.ClassDef):
        return None
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        a = init.args
        positional = a.args[1:]
        defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
        pairs = [*zip(positional, defaults, strict=True), *zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        return {arg.arg: _parameter(path, arg.annotation, default is None) for arg, default in pairs}
    inherited = _inherited(path, node)
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return inherited
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return inherited | {n.target.id: _parameter(path, n.annotation, _is_required(n)) for n in fields}


def _is_required(field: ast.AnnAssign) -> bool:
    return field.value is None or ast.unparse(field.value) == "field()"


def _inherited(path: Path, node: ast.ClassDef) -> dict[str, Parameter]:
    """The constructor of the first base class that is of this package; {} if none is."""
    for base in node.bases:
        name = ast.unparse(base)
        found = _find(_imports(_tree(path)).get(name, "")) or next(
            ((path, n) for n in _tree(path).body if isinstance(n, ast.ClassDef) and n.name == name), None
        )
        if found is not None:
            return _of_class(*found) or {}
    return {}


def _parameter(path: Path, annotation: ast.expr | None, required: bool) -> Parameter:
    text = "Any" if annotation is None else ast.unparse(annotation)
    types, options = _admitted(path, annotation)
    return Parameter(text, types, options, required)


_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
    "tuple": (list, tuple), "list": (list, tuple), "Sequence": (list, tuple), "dict": (dict,),
}  # fmt: skip


def _admitted(path: Path, node: ast.expr | None) -> tuple[tuple[type, ...] | None, tuple[str | int, ...] | None]:
    """(types, options) of an annotation; (None, None) for one that only instantiation can check."""
    if node is None:
        return None, None
    if isinstance(node, ast.BinOp):  # X | Y
        left, right = _admitted(path, node.left), _admitted(path, node.right)
        types = None if left[0] is None or right[0] is None else left[0] + right[0]
        return types, (left[1] or ()) + (right[1] or ()) or None
    if isinstance(node, ast.Constant) and node.value is None:
        return (type(None),), None
    if isinstance(node, ast.Subscript):
        if ast.unparse(node.value) == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            options = tuple(ast.literal_eval(i) for i in items)
            return tuple({type(option) for option in options}), options
        return _SIMPLE.get(ast.unparse(node.value)), None
    name = ast.unparse(node)
    if name in _SIMPLE:
        return _SIMPLE[name], None
    alias = next((n for n in _tree(path).body if isinstance(n, ast.Assign) and n.targets[0].id == name), None)
    if alias is not None:
        return _admitted(path, alias.value)
    found = _find(_imports(_tree(path)).get(name, ""))
    if found is not None and isinstance(found[1], ast.Assign):
        return _admitted(found[0], found[1].value)
    return None, None


def mismatch(parameter: Parameter, value: Any) -> str | None:
    """Why a configured value does not fit a parameter, or None."""
    options = parameter.options or ()
    if type(value) in {type(option) for option in options} and value not in options:
        return f"must be one of {', '.join(map(str, options))}"
    if parameter.types is None or isinstance(value, dict):
        return None
    if (isinstance(value, bool) and bool not in parameter.types) or not isinstance(value, parameter.types):
        return f"must be {parameter.annotation}"
    return None
