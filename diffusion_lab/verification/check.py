"""What a verification finds: values with what is expected of them, and curves to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Relation = Literal["=", "<=", ">="]


@dataclass(frozen=True)
class Check:
    """A value, what is expected of it, and by how much it may miss that; without a tolerance it is only reported."""

    name: str
    value: float
    expected: float = 0.0
    tolerance: float | None = 0.0
    relation: Relation = "="

    @property
    def passed(self) -> bool:
        """Whether the value is as expected; False for NaN, True for a value that is only reported."""
        if self.tolerance is None:
            return True
        miss = self.value - self.expected
        off = {"=": abs(miss), "<=": miss, ">=": -miss}[self.relation]
        return off <= self.tolerance

    @property
    def verdict(self) -> str:
        """In one word: "ok", "FAILED", or "-" for a value that is only reported."""
        return "-" if self.tolerance is None else "ok" if self.passed else "FAILED"

    def row(self) -> dict[str, Any]:
        """As plain values, for a file; numbers that JSON lacks are text."""
        values = {"relation": self.relation, "verdict": self.verdict, **asdict(self)}
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    def __str__(self) -> str:
        limited = self.tolerance is not None
        expected = f"{'' if self.relation == '=' else self.relation + ' '}{self.expected:.4g}" if limited else ""
        tolerance = f"{self.tolerance:.2g}" if limited else ""
        return f"{self.name:<66} {self.value:>10.4g} {expected:>10} {tolerance:>10}  {self.verdict}"


HEADER = f"{'check':<66} {'value':>10} {'expected':>10} {'tolerance':>10}  verdict"
"""The line above a table of checks."""


@dataclass(frozen=True)
class Chart:
    """Named lines of points (x, y); `exact` lines are what they should be.  Charts of one name are drawn as one."""

    name: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    exact: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    scales: tuple[Literal["linear", "log"], Literal["linear", "log"]] = ("linear", "linear")

    def named(self, prefix: str) -> Chart:
        """The same with a prefix of the names of its lines."""
        return replace(self, lines={f"{prefix} {name}".strip(): line for name, line in self.lines.items()})


Finding = Check | Chart


def under(prefix: str, findings: Iterable[Finding]) -> Iterable[Finding]:
    """The findings with a prefix of their names, such as the process on which they were made."""
    for one in findings:
        yield one.named(prefix) if isinstance(one, Chart) else replace(one, name=f"{prefix}: {one.name}")


def merged(charts: Iterable[Chart]) -> list[Chart]:
    """The charts, with the lines of those of one name in one; what they should be is that of the first."""
    found: dict[str, Chart] = {}
    for one in charts:
        before = found.setdefault(one.name, replace(one, lines={}))
        found[one.name] = replace(before, lines={**before.lines, **one.lines})
    return list(found.values())


def points(x: Tensor, y: Tensor) -> list[tuple[float, float]]:
    """A line of a chart from x (N,) and y (N,)."""
    return list(zip(x.detach().tolist(), y.detach().tolist(), strict=True))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def largest(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return values.detach().abs().max().item()


def farthest(ratios: Tensor) -> float:
    """The ratio that is farthest from 1; NaN if there is one."""
    ratios = ratios.detach().flatten()
    return ratios[(ratios - 1).abs().argmax()].item()


def relative(found: Tensor, want: Tensor) -> float:
    """The largest difference divided by the largest absolute value, where that is not 0."""
    return largest(found - want) / (largest(want) or 1.0)
