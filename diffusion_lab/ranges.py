"""Ranges and options, declared once in the signature of a class and checked in Python and in configurations.

A parameter states its range as `Annotated[int, Ge(1)]` (annotated-types) or by an alias of this module, and its options
as `Literal["a", "b"]`, also in `X | None` and `Sequence[X]`.  `checked` and `check_fields` check the arguments in
Python; the validator of configurations reads the same signature without importing the class, of any package.

A class may also declare rules between its parameters, which subclasses inherit, as literals:

    ORDERED: ClassVar = (("low", "high"),)      low must be less than high
    ANY_OF: ClassVar = (("a", "b"),)            a, b or both must be given
    REFUSES: ClassVar = {"key": "reason"}       a configuration must not set the key; see `config.class_rules`
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen, MultipleOf

Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Levels = Annotated[int, Ge(2)]
"""A number of discrete noise levels, or of grey levels."""
SampleSize = Annotated[int, Ge(2)]
"""A number of samples whose covariance can be estimated."""
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Finite = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
Positive = Annotated[float, Interval(gt=0, lt=math.inf)]
NonNegative = Annotated[float, Interval(ge=0, lt=math.inf)]
Fraction = Annotated[float, Interval(gt=0, lt=1)]
Probability = Annotated[float, Interval(ge=0, lt=1)]
"""Of dropout, or the decay of an average: 1 is excluded."""
UnitInterval = Annotated[float, Interval(ge=0, le=1)]
RelativeStd = Annotated[float, Interval(gt=0, le=0.2887)]
"""Of the profile of a power-function average, divided by its time; the uniform average has 1 / sqrt(12)."""
Time = Annotated[float, Interval(gt=0, le=1)]
"""A time of the noise process after t = 0."""

SECOND_DERIVATIVES = {
    "compile": "needs second derivatives, which torch.compile does not support: set compile=false",
    "trainer.strategy.SHARDED": "needs second derivatives, which trainer=fsdp does not support: use trainer=default",
}
"""`REFUSES` of a class that differentiates twice."""

UNIONS, LISTS = (Union, UnionType), (list, tuple, Sequence)
UNKNOWN, OTHER_TYPE = "unknown", ""
_Function = TypeVar("_Function", bound=Callable[..., None])


def mismatch(hint: Any, value: Any) -> str | None:
    """Why a value does not fit a type hint, "must be ..."; None if it fits, or if the hint is a class of its own."""
    reason = verdict(hint, value)
    return None if reason in (None, UNKNOWN) else f"must be {reason or described(hint)}"


def verdict(hint: Any, value: Any) -> str | None:
    """None for a value that fits, UNKNOWN if the type is a class, OTHER_TYPE, or else what the value must be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        reason = verdict(arguments[0], value)
        return _outside(hint.__metadata__, value) if reason is None and value is not None else reason
    if origin in UNIONS:
        reasons = [verdict(one, value) for one in arguments]
        if None in reasons:
            return None
        wrong = dict.fromkeys(reason for reason in reasons if reason not in (OTHER_TYPE, UNKNOWN))
        return " or ".join(wrong) or (UNKNOWN if UNKNOWN in reasons else OTHER_TYPE)
    if origin is Literal:
        if any(value is o or (value == o and type(value) is type(o)) for o in arguments):
            return None
        return f"one of {', '.join(map(str, arguments))}" if type(value) in map(type, arguments) else OTHER_TYPE
    if (origin or hint) in LISTS:
        return _elements(hint, value)
    fits = {
        int: lambda: hasattr(value, "__index__") and not isinstance(value, bool),
        float: lambda: hasattr(value, "__float__") and not isinstance(value, bool),
        bool: lambda: isinstance(value, bool),
        str: lambda: isinstance(value, (str, PathLike)),  # a place may be given as a path
        Path: lambda: isinstance(value, (str, PathLike)),
        dict: lambda: isinstance(value, Mapping),
        Mapping: lambda: isinstance(value, Mapping),
        None: lambda: value is None,
        NoneType: lambda: value is None,
    }.get(origin or hint)
    return UNKNOWN if fits is None else None if fits() else OTHER_TYPE


def _elements(hint: Any, value: Any) -> str | None:
    """The reason for a list or tuple: the first that one of its elements has."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) or not hasattr(value, "__len__"):
        return OTHER_TYPE
    kinds = get_args(hint)
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            return OTHER_TYPE
    else:
        kinds = kinds[:1] * len(value)
    reasons = [r for r in map(verdict, kinds, value) if r not in (None, UNKNOWN)]
    return None if not reasons else reasons[0] and f"a list whose elements are {reasons[0]}"


def _outside(metadata: Iterable[Any], value: Any) -> str | None:
    """The range of a value outside of it, in words; None inside."""
    limits = [limit for m in metadata for limit in (m if isinstance(m, GroupedMetadata) else [m])]
    low, high, others, inside = "", "", [], True
    for limit in limits:
        match limit:
            case Gt(gt=bound):
                low, inside = f"({bound}", inside and value > bound
            case Ge(ge=bound):
                low, inside = f"[{bound}", inside and value >= bound
            case Lt(lt=bound):
                high, inside = f"{bound})", inside and value < bound
            case Le(le=bound):
                high, inside = f"{bound}]", inside and value <= bound
            case MultipleOf(multiple_of=unit):
                others, inside = [*others, f"a multiple of {unit}"], inside and value % unit == 0
            case MinLen(min_length=least):
                others, inside = [*others, f"of length {least} or more"], inside and len(value) >= least
            case MaxLen(max_length=most):
                others, inside = [*others, f"of length {most} or less"], inside and len(value) <= most
    if inside:
        return None
    words = {"(": "greater than ", "[": "at least ", ")": "less than ", "]": "at most "}
    if low and high:
        others.insert(0, "finite" if (low, high) == ("(-inf", "inf)") else f"in {low}, {high}")
    elif low or high:
        others.insert(0, words[low[0]] + low[1:] if low else words[high[-1]] + high[:-1])
    return " and ".join(others)


def described(hint: Any) -> str:
    """A type hint in words, without its ranges."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return described(arguments[0])
    if origin in UNIONS:
        return " | ".join(dict.fromkeys(map(described, arguments)))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in LISTS:
        inner = ", ".join("..." if a is Ellipsis else described(a) for a in arguments)
        return f"{origin.__name__}[{inner}]"
    return "None" if hint in (None, NoneType) else getattr(hint, "__name__", str(hint))


def options(hint: Any) -> tuple[Any, ...]:
    """The options of a Literal, alone or among alternatives."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return arguments
    inner = arguments if origin in UNIONS else arguments[:1] if origin is Annotated else ()
    return tuple(option for one in inner for option in options(one))


def checked(init: _Function) -> _Function:
    """Let a constructor refuse arguments that its signature does not allow.

    Raises:
        ValueError: naming the class, the parameter, its value and what is allowed.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:
            return init(self, *args, **kwargs)  # raises Python's own message
        given.apply_defaults()
        _check(type(self), _hints(init), given.arguments)
        return init(self, *args, **kwargs)

    return construct


def check_fields(instance: Any) -> None:
    """The same for the fields of a dataclass, in its `__post_init__`."""
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    _check(type(instance), _hints(type(instance)), values)


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    """Type hints of a function, or of the fields of a dataclass."""
    if not isinstance(owner, type):
        return get_type_hints(owner, include_extras=True)
    names, hints = {field.name for field in dataclasses.fields(owner)}, {}
    for base in reversed(owner.__mro__):
        stated = {name: text for name, text in inspect.get_annotations(base).items() if name in names}
        module = vars(sys.modules[base.__module__])
        hints |= get_type_hints(SimpleNamespace(__annotations__=stated), module, include_extras=True)
    return hints


def _check(owner: type, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        reason = mismatch(hints.get(name, Any), value)
        if reason:
            raise ValueError(f"{owner.__name__}: {name}={' '.join(repr(value).split())[:200]} {reason}")
    for names in getattr(owner, "ANY_OF", ()):
        if all(name in values and values[name] is None for name in names):
            raise ValueError(f"{owner.__name__}: give {' or '.join(names)}, or both")
    for low, high in getattr(owner, "ORDERED", ()):
        if low in values and high in values and not values[low] < values[high]:
            raise ValueError(f"{owner.__name__}: {low}={values[low]} must be less than {high}={values[high]}")
