"""Curves as SVG: their geometry; the template `parts.html` draws it, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
class Chart:
    """A curve of values by optimiser step; values that are not finite are left out."""

    title: str
    points: Sequence[Point]

    @cached_property
    def finite(self) -> list[Point]:
        """The finite points, at most MOST of them: the means of neighbours."""
        found = [point for point in self.points if all(map(math.isfinite, point))]
        size = math.ceil(len(found) / MOST)
        groups = [found[i : i + size] for i in range(0, len(found), size)] if size > 1 else [[one] for one in found]
        return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]

    @property
    def is_log(self) -> bool:
        """Whether the vertical axis is logarithmic."""
        values = [y for _, y in self.finite]
        return min(values) > 0 and max(values) > SPAN * min(values)

    @cached_property
    def range(self) -> tuple[float, float]:
        """Lower and upper end of the vertical axis, with a margin of 5 %."""
        values = [math.log10(y) if self.is_log else y for _, y in self.finite]
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin

    def place(self, x: float, y: float) -> Point:
        """The position of a point in pixels."""
        first, last = self.finite[0][0], self.finite[-1][0]
        low, high = self.range
        part = (x - first) / (last - first) if last > first else 0.5
        height = ((math.log10(y) if self.is_log else y) - low) / (high - low)
        return round(LEFT + part * (RIGHT - LEFT), 1), round(BOTTOM - height * (BOTTOM - TOP), 1)

    @property
    def line(self) -> str:
        """The points of the SVG polyline."""
        return " ".join(f"{x:g},{y:g}" for x, y in (self.place(*point) for point in self.finite))

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Position and label of each tick of the horizontal axis."""
        first, last = self.finite[0][0], self.finite[-1][0]
        return [(self.place(x, self.finite[0][1])[0], number(x)) for x in round_numbers(first, last, 4)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Position and label of each tick of the vertical axis."""
        low, high = self.range
        if self.is_log and high - low > 1:
            factors = (1,) if high - low > DECADES else (1, 2, 5)
            every = math.ceil((high - low) / 6)
            powers = range(math.floor(low), math.ceil(high) + 1)
            values = [f * 10.0**p for p in powers if p % every == 0 for f in factors]
        else:
            values = round_numbers(*((10**low, 10**high) if self.is_log else (low, high)), 4)
        found = [(value, math.log10(value) if self.is_log else value) for value in values]
        return [(self.place(self.finite[0][0], v)[1], number(v)) for v, shown in found if low <= shown <= high]

    @property
    def summary(self) -> str:
        """The chart in words."""
        (first, start), (last, end) = self.finite[0], self.finite[-1]
        if first == last:
            return f"{self.title} {number(start)} at step {number(first)}"
        return f"{self.title} from {number(start)} at step {number(first)} to {number(end)} at step {number(last)}"


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Format a number in a short form: 0.002, 6, 3,000, 20k, 5e+07."""
    if value and abs(value) >= 1e4 and value % 1000 == 0 and abs(value) < 1e9:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
