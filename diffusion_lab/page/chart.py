"""Curves and dots as SVG and HTML: their geometry; the template `parts.html` draws it, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Point = tuple[float, float]

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 326, 12, 182
"""Size of a chart in pixels, and the edges of its axes."""

MOST = 300
"""Points that are drawn of a curve."""

SPAN, DECADES = 20, 2.5
"""Ratio of the largest to the smallest value from which an axis is logarithmic, and decades up to which 2 and 5 are
labelled beside powers of ten."""


@dataclass(frozen=True)
class Axis:
    """An axis from the smallest to the largest value, logarithmic if they are positive and far apart."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, values: Sequence[float], margin: float, zero: bool = False) -> Axis:
        """The axis of finite values, with a margin as a fraction of their range; from zero if asked for."""
        low, high = min(*values, 0) if zero else min(values), max(values)
        is_log = low > 0 and high > SPAN * low
        low, high = (math.log10(low), math.log10(high)) if is_log else (low, high)
        more = margin * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - more * (not zero), high + more, is_log)

    def place(self, value: float) -> float:
        """The position of a value, 0 at the lower end and 1 at the upper one."""
        return ((math.log10(value) if self.is_log else value) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """The round values in the range of the axis."""
        if self.is_log and self.high - self.low > 1:
            factors = (1,) if self.high - self.low > DECADES else (1, 2, 5)
            every = math.ceil((self.high - self.low) / 6)
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
        else:
            ends = (self.low, self.high)
            values = round_numbers(*(map(math.pow, (10.0, 10.0), ends) if self.is_log else ends), 4)
        return [value for value in values if 0 <= self.place(value) <= 1]


@dataclass(frozen=True)
class Chart:
    """Named curves of values by optimiser step; values that are not finite are left out."""

    title: str
    lines: Mapping[str, Sequence[Point]]

    @cached_property
    def finite(self) -> dict[str, list[Point]]:
        """The finite points of each curve that has some, at most MOST of them: the means of neighbours."""
        found = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in self.lines.items()}
        return {name: thinned(points) for name, points in found.items() if points}

    @cached_property
    def x_axis(self) -> Axis:
        """The axis of steps, without a margin."""
        steps = [x for points in self.finite.values() for x, _ in points]
        return (
            Axis(min(steps), max(steps), False) if max(steps) > min(steps) else Axis(steps[0] - 1, steps[0] + 1, False)
        )

    @cached_property
    def y_axis(self) -> Axis:
        """The axis of values."""
        return Axis.of([y for points in self.finite.values() for _, y in points], 0.05)

    def place(self, x: float, y: float) -> Point:
        """The position of a point in pixels."""
        right, up = self.x_axis.place(x), self.y_axis.place(y)
        return round(LEFT + right * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    @property
    def polylines(self) -> list[tuple[str, str]]:
        """(name, points of the SVG polyline) of each curve."""
        return [
            (name, " ".join("{:g},{:g}".format(*self.place(*point)) for point in points))
            for name, points in self.finite.items()
        ]

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Position and label of each tick of the horizontal axis."""
        return [(LEFT + self.x_axis.place(x) * (RIGHT - LEFT), number(x)) for x in self.x_axis.ticks if x.is_integer()]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Position and label of each tick of the vertical axis."""
        return [(BOTTOM - self.y_axis.place(y) * (BOTTOM - TOP), number(y)) for y in self.y_axis.ticks]

    @property
    def summary(self) -> str:
        """The chart in words."""
        said = []
        for name, points in self.finite.items():
            (first, start), (last, end) = points[0], points[-1]
            to = f" to {number(end)} at step {number(last)}" if last > first else ""
            said.append(f"{name} {'from ' * bool(to)}{number(start)} at step {number(first)}{to}")
        return "; ".join(said)


@dataclass(frozen=True)
class Panel:
    """One value for each of several named rows, None for a row without one, on a common axis.

    `texts` are the values as they are written; `errors` are error bars, `best` rows are highlighted, `levels` are
    marked across all rows, `bars` start at zero.
    """

    title: str
    names: Sequence[str]
    values: Sequence[float | None]
    texts: Sequence[str]
    errors: Sequence[float | None] = ()
    best: Sequence[bool] = ()
    levels: Sequence[float] = ()
    bars: bool = False

    @cached_property
    def axis(self) -> Axis | None:
        """The axis; None without a finite value."""
        ends = [(v - e, v + e) for v, e in zip(self.values, self.errors, strict=False) if v is not None and e]
        found = [v for v in (*self.values, *self.levels, *sum(ends, ())) if v is not None and math.isfinite(v)]
        return Axis.of(found, 0.08, zero=self.bars) if found else None

    @property
    def rows(self) -> list[tuple[str, str, float | None, tuple[float, float] | None, bool]]:
        """(name, text, position, ends of the error bar, best) of each row with a value; positions in percent."""
        errors, best = self.errors or [None] * len(self.names), self.best or [False] * len(self.names)
        found = []
        for name, value, text, error, first in zip(self.names, self.values, self.texts, errors, best, strict=True):
            if value is None:
                continue
            at = self._percent(value) if math.isfinite(value) else None
            ends = None
            if at is not None and error and math.isfinite(error):
                ends = self._percent(value - error), self._percent(value + error)
            found.append((name, text, at, ends, first))
        return found

    @property
    def marks(self) -> list[float]:
        """Positions of the levels in percent."""
        return [self._percent(level) for level in self.levels]

    def _percent(self, value: float) -> float:
        return round(100 * self.axis.place(value), 2)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST points: the means of neighbours."""
    size = math.ceil(len(points) / MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [float(i * step) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def time_unit(seconds: float) -> tuple[int, str]:
    """The largest of s, min and h in which a time is 3 or more: (its seconds, its name)."""
    return next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= 3 * size), (1, "s"))


def plus_minus(error: float | None) -> str:
    """Format a standard error with two significant digits, " ± 0.0027" or " ± 130"; "" for None."""
    shown = f"{error:.2g}" if error is not None else ""
    return f" ± {float(shown):g}" if shown else ""


def number(value: float) -> str:
    """Format a number in a short form: 0.002, 6, 3,000, 20k, 5e+07."""
    if value and abs(value) >= 1e4 and value % 1000 == 0 and abs(value) < 1e9:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
