"""Pictures of what a verification finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusion_lab.plot.charts import COLOURS, plain_number
from diffusion_lab.plot.picture import INK, replacing, square_panels
from diffusion_lab.verification.check import Chart

MANY = 5
"""Lines from which the legend stands beside the panel."""


def draw(chart: Chart, path: str | Path, title: str = "") -> None:
    """Plot the lines of a chart, and what they should be, dashed; points without a place on the axes are left out."""
    from matplotlib.ticker import NullFormatter

    chart = seen(chart)
    if not any((*chart.lines.values(), *chart.exact.values())):
        return
    figure, (axes,) = square_panels(1, title, side=6.0)
    for index, (name, line) in enumerate(chart.lines.items()):
        marker = "o" if len(line) <= 12 else ""
        colour = COLOURS[index % len(COLOURS)]
        axes.plot([x for x, _ in line], [y for _, y in line], label=name, color=colour, linewidth=2, marker=marker)
    styles = ("--", ":", "-.")
    for index, (name, line) in enumerate(chart.exact.items()):
        style = styles[index % len(styles)]
        axes.plot([x for x, _ in line], [y for _, y in line], label=name, color=INK, linewidth=1.2, linestyle=style)
    axes.set(xlabel=chart.x, ylabel=chart.y, xscale=chart.scales[0], yscale=chart.scales[1])
    for scale, axis, place in zip(chart.scales, (axes.xaxis, axes.yaxis), (0, 1), strict=True):
        values = sorted({point[place] for line in chart.lines.values() for point in line})
        if scale == "log" and 0 < len(values) <= MANY:
            axis.set_ticks(values)
            axis.set_major_formatter(lambda value, _: plain_number(value))
            axis.set_minor_formatter(NullFormatter())
    every = [y for line in chart.lines.values() for _, y in line]
    if chart.scales[1] == "linear" and min(every, default=-1) >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    count = len(chart.lines) + len(chart.exact)
    if count > MANY:
        figure.set_size_inches(9.0, 6.0)
        axes.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif count > 1 or any(chart.lines):
        axes.legend(frameon=False, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def seen(chart: Chart) -> Chart:
    """The chart with those points that are finite, and positive on a logarithmic axis."""
    least = [0.0 if scale == "log" else -math.inf for scale in chart.scales]

    def inside(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [point for point in line if all(low < v < math.inf for low, v in zip(least, point, strict=True))]

    lines, exact = ({name: inside(line) for name, line in some.items()} for some in (chart.lines, chart.exact))
    return replace(chart, lines=lines, exact=exact)
