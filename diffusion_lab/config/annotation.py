"""The type that an annotation states, read from source: with ranges, options and aliases, without importing it."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types

from diffusion_lab.config.source import assigned, named

TYPES: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "tuple": tuple, "list": list, "Sequence": Sequence,
    "dict": dict, "Mapping": Mapping, "Path": Path,
}  # fmt: skip

LIMITS = ("Ge", "Gt", "Le", "Lt", "Interval", "MultipleOf", "MinLen", "MaxLen", "Len")
"""Ranges of annotated-types."""

OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


class UnreadableError(Exception):
    """A value in source that is neither a literal nor made of literals."""


def hint(path: Path, node: ast.expr | None) -> Any:
    """The type of an annotation in a file; Any for what only instantiation can check."""
    try:
        return _hint(path, node)
    except (UnreadableError, RecursionError):  # a type that contains itself
        return Any


def _hint(path: Path, node: ast.expr | None) -> Any:
    match node:
        case ast.BinOp():  # X | Y
            return Union[_hint(path, node.left), _hint(path, node.right)]  # noqa: UP007
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _hint(path, ast.parse(text, mode="eval").body)
        case ast.Subscript():
            return _subscript(path, last(node.value), node.slice)
        case ast.Name() | ast.Attribute():
            found = None if last(node) in TYPES else named(path, node)
            alias = found is not None and assigned(found[1])
            return _hint(found[0], found[1].value) if alias else TYPES.get(last(node), Any)
    return Any


def _subscript(path: Path, name: str, inside: ast.expr) -> Any:
    """The type name[inside]."""
    items = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        return Literal[tuple(value(path, item) for item in items)]
    if name == "Annotated":
        limits = tuple(limit for limit in (_limit(path, item) for item in items[1:]) if limit is not None)
        return Annotated[(_hint(path, items[0]), *limits)] if limits else _hint(path, items[0])
    if name not in ("Union", "Optional", "tuple", "list", "Sequence"):
        return TYPES.get(name, Any)
    inner = tuple(... if ast.unparse(item) == "..." else _hint(path, item) for item in items)
    if name == "Optional":
        inner += (None,)
    return TYPES[name][inner] if name in TYPES else Union[inner]  # noqa: UP007


def _limit(path: Path, node: ast.expr) -> Any:
    """A range in an annotation, such as Ge(1); None for anything else."""
    name = last(node.func) if isinstance(node, ast.Call) else ""
    if name not in LIMITS:
        return None
    keywords = {word.arg: value(path, word.value) for word in node.keywords}
    return getattr(annotated_types, name)(*(value(path, item) for item in node.args), **keywords)


def last(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return ast.unparse(node).rpartition(".")[2]


def value(path: Path, node: ast.expr) -> Any:
    """The value of a literal, of arithmetic with literals, or of a constant in source.

    Raises:
        UnreadableError: for anything else.
    """
    try:
        match node:
            case ast.BinOp():
                return OPERATORS[type(node.op)](value(path, node.left), value(path, node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -value(path, node.operand)
            case ast.Name() | ast.Attribute():
                found = named(path, node)
                return math.inf if found is None and last(node) == "inf" else value(found[0], found[1].value)
        return ast.literal_eval(node)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableError(ast.unparse(node)) from error
