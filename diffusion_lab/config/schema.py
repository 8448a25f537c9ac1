"""The parameters of a class, read from its source without importing it (torch takes seconds to import)."""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from diffusion_lab import ranges
from diffusion_lab.config.annotation import UnreadableError, hint, value
from diffusion_lab.config.source import PACKAGE, Definition, assigned, find, named


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class: its type with ranges and options (Any: only instantiation can check it)."""

    hint: Any
    required: bool

    @property
    def options(self) -> tuple[Any, ...]:
        """The options of a Literal, alone or among alternatives."""
        return ranges.options(self.hint)


@functools.cache
def parameters(target: str) -> dict[str, Parameter] | None:
    """Parameters of a class by its full name; None if they cannot be determined."""
    found = find(target)
    return None if found is None else _of_class(*found)


@functools.cache
def constants(target: str, name: str) -> tuple[Any, ...]:
    """Values that a class and its bases assign to a name, as literals; the class's own first."""
    found = []
    for path, node in _lineage(find(target)):
        for statement in (one for one in node.body if assigned(one) == name):
            with contextlib.suppress(UnreadableError):
                found.append(value(path, statement.value))
    return tuple(found)


@functools.cache
def has_method(target: str, name: str) -> bool | None:
    """Whether a class or one of its bases defines a method; None if the class cannot be found."""
    classes = [node for _, node in _lineage(find(target))]
    methods = (n.name for node in classes for n in node.body if isinstance(n, ast.FunctionDef))
    return name in methods if classes else None


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
        return {arg.arg: Parameter(hint(path, arg.annotation), default is None) for arg, default in pairs} | passed_on
    inherited = _inherited(path, node)
    if inherited is None:
        return None
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return inherited
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return inherited | {n.target.id: Parameter(hint(path, n.annotation), _is_required(n)) for n in fields}


def _unpacked(path: Path, kwarg: ast.arg | None) -> dict[str, Parameter]:
    """The optional parameters of `**options: Unpack[T]`, the fields of a typed dictionary T."""
    annotation = kwarg and kwarg.annotation
    if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value).rpartition(".")[2] != "Unpack":
        return {}
    classes = reversed([*_lineage(named(path, annotation.slice))])
    fields = ((where, n) for where, node in classes for n in node.body if isinstance(n, ast.AnnAssign))
    return {n.target.id: Parameter(hint(where, n.annotation), required=False) for where, n in fields}


def _is_required(field: ast.AnnAssign) -> bool:
    return field.value is None or ast.unparse(field.value) == "field()"


def _lineage(found: Definition | None) -> Iterator[Definition]:
    """A class and its bases, those that can be found."""
    if found is not None and isinstance(found[1], ast.ClassDef):
        yield found
        for base in _bases(*found):
            yield from _lineage(base)


def _bases(path: Path, node: ast.ClassDef) -> list[Definition]:
    """The base classes that can be found."""
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return [found for found in (named(path, base) for base in bases) if found is not None]


def _inherited(path: Path, node: ast.ClassDef) -> dict[str, Parameter] | None:
    """Parameters of the first base class that can be found; without one {}, or None outside this package."""
    for found in _bases(path, node):
        if PACKAGE in found[0].parents or PACKAGE not in path.parents:
            return _of_class(*found)
    return {} if PACKAGE in path.parents or not node.bases else None


def converted(hint: Any, given: Any) -> Any:
    """Convert a value to a type that a hint accepts, if nothing is lost: integral floats to int, numbers to str.

    Integers in a list of real numbers become floats: torch.optim refuses betas=[0, 0.9].
    """
    if isinstance(given, list):
        kind = _element(hint)
        real = kind is not Any and ranges.verdict(kind, 0.5) != ranges.OTHER_TYPE
        elements = [float(one) if real and type(one) is int else converted(kind, one) for one in given]
        return elements if any(a is not b for a, b in zip(elements, given, strict=True)) else given
    if type(given) not in (int, float) or ranges.verdict(hint, given) != ranges.OTHER_TYPE:
        return given
    takes_numbers = any(ranges.verdict(hint, number) != ranges.OTHER_TYPE for number in (0, 0.5))
    if takes_numbers and isinstance(given, float) and given.is_integer():
        return int(given)
    return given if takes_numbers or ranges.verdict(hint, "") == ranges.OTHER_TYPE else str(given)


def _element(hint: Any) -> Any:
    """The type of the elements of a list; Any if unknown."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _element(arguments[0])
    if origin in ranges.UNIONS:
        return next((one for one in map(_element, arguments) if one is not Any), Any)
    return arguments[0] if origin in ranges.LISTS else Any


def mismatch(parameter: Parameter, given: Any) -> str | None:
    """Why a configured value does not fit a parameter, or None."""
    return None if isinstance(given, dict) and "_target_" in given else ranges.mismatch(parameter.hint, given)
