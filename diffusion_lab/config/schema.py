"""The parameters of a class, read from its source without importing it (torch takes seconds to import)."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class: its annotation as text, and the types and options it accepts (None: anything)."""

    annotation: str
    types: tuple[type, ...] | None
    options: tuple[str | int, ...] | None
    required: bool
    elements: tuple[type, ...] | None = None
    """Types of the elements, if it accepts a list."""
    length: int | None = None
    """Number of elements, if it accepts a tuple of fixed length."""


@functools.cache
def parameters(target: str) -> dict[str, Parameter] | None:
    """Parameters of a class by its full name; None if they cannot be determined."""
    found = _find(target)
    return None if found is None else _of_class(*found)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module(dotted: str) -> Path | None:
    """The file of a module of this package or another one on sys.path; nothing is imported."""
    top, *rest = dotted.split(".")
    root = _root(top)
    base = None if root is None else root.joinpath(*rest)
    return base and next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@functools.cache
def _root(name: str) -> Path | None:
    """The folder of a package."""
    if name == PACKAGE.name:
        return PACKAGE
    spec = importlib.machinery.PathFinder.find_spec(name, sys.path) if name else None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _imports(path: Path) -> dict[str, str]:
    """Names that a module imports, with their full names."""
    return {
        alias.asname or alias.name: f"{_origin(path, node)}.{alias.name}"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


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


def _find(target: str) -> tuple[Path, ast.stmt] | None:
    """The file and the statement that define a name, followed through re-exports."""
    module, _, name = target.rpartition(".")
    path = _module(module)
    if path is None:
        return None
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return path, node
    origin = _imports(path).get(name, "")
    return None if origin == target else _find(origin)


def _of_class(path: Path, node: ast.stmt) -> dict[str, Parameter] | None:
    if not isinstance(node, ast.ClassDef):
        return None
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        a = init.args
        passed_on = _unpacked(path, a.kwarg)
        if PACKAGE not in path.parents and (a.vararg or (a.kwarg and not passed_on)):
            return None
        positional = a.args[1:]
        defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
        pairs = [*zip(positional, defaults, strict=True), *zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        return {arg.arg: _parameter(path, arg.annotation, default is None) for arg, default in pairs} | passed_on
    inherited = _inherited(path, node)
    if inherited is None:
        return None
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return inherited
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return inherited | {n.target.id: _parameter(path, n.annotation, _is_required(n)) for n in fields}


def _unpacked(path: Path, kwarg: ast.arg | None) -> dict[str, Parameter]:
    """The optional parameters of `**options: Unpack[T]`, the fields of a typed dictionary T."""
    annotation = kwarg and kwarg.annotation
    if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value).rpartition(".")[2] != "Unpack":
        return {}
    name = ast.unparse(annotation.slice)
    found = _find(_imports(path).get(name, "")) or next(
        ((path, n) for n in _tree(path).body if isinstance(n, ast.ClassDef) and n.name == name), None
    )
    fields = [n for n in found[1].body if isinstance(n, ast.AnnAssign)] if found else []
    return {n.target.id: _parameter(found[0], n.annotation, required=False) for n in fields}


def _is_required(field: ast.AnnAssign) -> bool:
    return field.value is None or ast.unparse(field.value) == "field()"


def _inherited(path: Path, node: ast.ClassDef) -> dict[str, Parameter] | None:
    """Parameters of the first base class that can be found; without one {}, or None outside this package."""
    for base in node.bases:
        name = ast.unparse(base)
        found = _find(_imports(path).get(name, "")) or next(
            ((path, n) for n in _tree(path).body if isinstance(n, ast.ClassDef) and n.name == name), None
        )
        if found is not None and (PACKAGE in found[0].parents or PACKAGE not in path.parents):
            return _of_class(*found)
    return {} if PACKAGE in path.parents or not node.bases else None


def _parameter(path: Path, annotation: ast.expr | None, required: bool) -> Parameter:
    text = "Any" if annotation is None else ast.unparse(annotation)
    types, options = _accepted(path, annotation)
    fixed = re.search(r"tuple\[([^\[\]]+)\]", text)
    length = None if fixed is None or "..." in fixed[1] else fixed[1].count(",") + 1
    return Parameter(text, types, options, required, _elements(path, annotation), length)


_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
    "tuple": (list, tuple), "list": (list, tuple), "Sequence": (list, tuple), "dict": (dict,), "Path": (str,),
    "Mapping": (dict,), "Number": (int, float), "Tensor": (),
}  # fmt: skip


def _accepted(path: Path, node: ast.expr | None) -> tuple[tuple[type, ...] | None, tuple[str | int, ...] | None]:
    """(types, options) of an annotation; (None, None) for one that only instantiation can check."""
    if node is None:
        return None, None
    if isinstance(node, ast.BinOp):  # X | Y
        left, right = _accepted(path, node.left), _accepted(path, node.right)
        types = None if left[0] is None or right[0] is None else left[0] + right[0]
        return types, (left[1] or ()) + (right[1] or ()) or None
    if isinstance(node, ast.Constant) and node.value is None:
        return (type(None),), None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _accepted(path, ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Subscript):
        several = _alternatives(node)
        if several:
            return _accepted(path, several)
        if ast.unparse(node.value) == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            options = tuple(ast.literal_eval(i) for i in items)
            return tuple({type(option) for option in options}), options
        return _SIMPLE.get(ast.unparse(node.value).removeprefix("typing.")), None
    name = ast.unparse(node)
    if name in _SIMPLE:
        return _SIMPLE[name], None
    assigned = (n for n in _tree(path).body if isinstance(n, ast.Assign))
    alias = next((n for n in assigned if getattr(n.targets[0], "id", None) == name), None)
    if alias is not None:
        return _accepted(path, alias.value)
    found = _find(_imports(path).get(name, ""))
    if found is not None and isinstance(found[1], ast.Assign):
        return _accepted(found[0], found[1].value)
    return None, None


def _alternatives(node: ast.Subscript) -> ast.expr | None:
    """Union[A, B] as A | B and Optional[A] as A | None; Annotated[A, ...] as A."""
    name = ast.unparse(node.value).removeprefix("typing.")
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Annotated":
        return items[0]
    if name not in ("Union", "Optional"):
        return None
    items = [*items, ast.Constant(None)] if name == "Optional" else items
    return functools.reduce(lambda a, b: ast.BinOp(a, ast.BitOr(), b), items)


def _elements(path: Path, node: ast.expr | None) -> tuple[type, ...] | None:
    """Types of the elements of the list that an annotation accepts; None for anything, or no list."""
    if isinstance(node, ast.BinOp):
        return _elements(path, node.left) or _elements(path, node.right)
    if not isinstance(node, ast.Subscript):
        return None
    several = _alternatives(node)
    if several:
        return _elements(path, several)
    if ast.unparse(node.value).removeprefix("typing.") not in ("tuple", "list", "Sequence"):
        return None
    return _accepted(path, node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice)[0]


def converted(parameter: Parameter, value: Any) -> Any:
    """Convert a value to a type its parameter accepts, if nothing is lost: integral floats to int, numbers to str."""
    if isinstance(value, list) and parameter.elements:
        elements = [_converted(parameter.elements, v) for v in value]
        return elements if any(a is not b for a, b in zip(elements, value, strict=True)) else value
    return value if parameter.types is None else _converted(parameter.types, value)


def _converted(types: tuple[type, ...], value: Any) -> Any:
    if isinstance(value, bool) or type(value) in types:
        return value
    if isinstance(value, float) and int in types and value.is_integer():
        return int(value)
    if isinstance(value, (int, float)) and str in types and not {int, float} & {*types}:
        return str(value)
    return value


def _fits(types: tuple[type, ...], value: Any) -> bool:
    return isinstance(value, types) and not (isinstance(value, bool) and bool not in types)


def mismatch(parameter: Parameter, value: Any) -> str | None:
    """Why a configured value does not fit a parameter, or None."""
    options = parameter.options or ()
    if type(value) in {type(option) for option in options} and value not in options:
        return f"must be one of {', '.join(map(str, options))}"
    if parameter.types is None or (isinstance(value, dict) and "_target_" in value):
        return None
    elements = value if isinstance(value, (list, tuple)) and parameter.elements else []
    short = isinstance(value, (list, tuple)) and parameter.length not in (None, len(value))
    if short or not _fits(parameter.types, value) or not all(_fits(parameter.elements, v) for v in elements):
        return f"must be {parameter.annotation}"
    return None
