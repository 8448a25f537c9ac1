"""Curves: noise schedules, and quality against cost."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from diffusion_lab.plot.picture import BLUE, INK, ORANGE, replacing, square_panels, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLOURS = (BLUE, ORANGE, "#3b8f4a", "#8456a8", "#b08a1e", "#c2477f", "#3a9aa0", INK)


def schedule_plot(times: Tensor, alpha: Tensor, sigma: Tensor, path: str | Path, title: str = "") -> None:
    """Plot alpha, sigma and the log signal-to-noise ratio log(alpha^2 / sigma^2) at times (T,)."""
    t, figure, (scales, ratio) = to_numpy(times), *square_panels(2, title)
    scales.plot(t, to_numpy(alpha), color=BLUE, linewidth=2.2, label=r"signal  $\alpha(t)$")
    scales.plot(t, to_numpy(sigma), color=ORANGE, linewidth=2.2, label=r"noise  $\sigma(t)$")
    scales.set(title=r"$\alpha$, $\sigma$", yscale="log" if sigma.max() > 5 else "linear")
    scales.legend(frameon=False, fontsize=12)
    log_snr = 2 * (alpha.double().log() - sigma.double().log())
    ratio.plot(t, to_numpy(log_snr), color=INK, linewidth=2.2)
    ratio.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ratio.set(title=r"log SNR  $\log\ \alpha^2/\sigma^2$")
    for axes in (scales, ratio):
        axes.set_xlabel("t   (0 = data)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    x: str,
    y: str,
    level: float | None = None,
    title: str = "",
) -> None:
    """Plot named lines of points (x, y) on logarithmic axes, and `level`, the value of real data, as a dotted line."""
    figure, (axes,) = square_panels(1, title, side=7.0)
    for index, (name, points) in enumerate(lines.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^v"[index // len(COLOURS) % 5]}
        axes.plot(*zip(*sorted(points), strict=True), label=name, linewidth=1.8, markersize=6, **style)
    if level is not None:
        axes.axhline(level, color=INK, linewidth=1, linestyle=":", label="real training data")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    plain_ticks(axes.xaxis, axes.yaxis)
    places = sorted({point[0] for points in lines.values() for point in points})
    if len(places) <= 8:
        axes.set_xticks(places)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(lines) > 5 else {}
    if beside:
        figure.set_size_inches(11.0, 7.0)
    axes.legend(frameon=False, fontsize=11, **beside)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def accuracy_plot(
    noise: Sequence[float], rates: Sequence[float], chance: float, path: str | Path, title: str = ""
) -> None:
    """Plot the accuracy of a classifier against the noise level sigma / alpha, and that of the most frequent class."""
    figure, (axes,) = square_panels(1, title, side=6.0)
    axes.plot(*zip(*sorted(zip(noise, rates, strict=True)), strict=True), color=BLUE, linewidth=2.2, marker="o")
    axes.axhline(chance, color=INK, linewidth=1, linestyle=":", label="most frequent class")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel=r"noise level  $\sigma/\alpha$", ylabel="accuracy")
    plain_ticks(axes.xaxis)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def plain_ticks(*axes: Axis) -> None:
    """Label logarithmic axes with plain numbers (6, 0.02, 3,000), and fewer of them for many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low) if low > 0 else 0
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        axis.set_minor_formatter(NullFormatter())


def plain_number(value: float) -> str:
    """Format a number in its shortest form: 0.002, 6, 3,000, 5e+07."""
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.4g}"


@dataclass(frozen=True)
class Panel:
    """One value for each of several rows, None for a row without one.

    `errors` are error bars, `best` rows are highlighted, `levels` are dotted lines, `bars` start at zero.
    """

    title: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()
    best: Sequence[bool] = ()
    levels: Sequence[float] = ()
    bars: bool = False


def dots(rows: Sequence[str], panels: Sequence[Panel], path: str | Path, title: str = "", columns: int = 4) -> None:
    """Plot panels with the same rows, the first on top; an axis is logarithmic if its values span a factor of 30."""
    names = [textwrap.wrap(name, 34) for name in rows]
    columns, height = min(columns, len(panels)), max(0.36, 0.18 * max(map(len, names)))
    figure, all_axes = square_panels(len(panels), title, columns=columns)
    left = 0.08 * max(len(line) for name in names for line in name)
    figure.set_size_inches(3.2 * columns + left, math.ceil(len(panels) / columns) * (height * len(rows) + 1.1) + 0.5)
    for index, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        draw_dots(axes, panel)
        labels = ["\n".join(name) if index % columns == 0 else "" for name in names]
        axes.set_yticks(range(len(rows)), labels, fontsize=10)
        axes.set_ylim(len(rows) - 0.4, -0.8)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def draw_dots(axes: Axes, panel: Panel) -> None:
    """Draw one panel; a value that is not finite is shown as text."""
    shown = [value for value in (*panel.values, *panel.levels) if value is not None and math.isfinite(value)]
    if shown and min(shown) > 0 and max(shown) > 30 * min(shown) and not panel.bars:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    else:
        axes.locator_params(axis="x", nbins=5)
    for row, value in enumerate(panel.values):
        if value is None:
            continue
        if not math.isfinite(value):
            axes.annotate(f"{value}", (0.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
            continue
        colour = ORANGE if panel.best and panel.best[row] else BLUE
        label, align = f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip("."), {"ha": "center"}
        if panel.bars:
            axes.barh(row, value, height=0.5, color=colour, alpha=0.55)
            label, align = f" {label.removesuffix('.0')}", {"va": "center"}
        else:
            error = panel.errors[row] if panel.errors else None
            axes.errorbar(value, row, xerr=error, fmt="o", color=colour, markersize=6, capsize=3, elinewidth=1.4)
        offset = (0, 0 if panel.bars else 5)
        axes.annotate(label, (value, row), offset, textcoords="offset points", fontsize=8.5, color=INK, **align)
    for level in panel.levels:
        axes.axvline(level, color=INK, linewidth=1, linestyle=":")
    axes.margins(x=0.15)
    parts = [panel.title] if len(panel.title) < 38 else panel.title.replace(" (", "\n(", 1).split("\n")
    axes.set_title("\n".join(line for part in parts for line in textwrap.wrap(part, 40)), fontsize=10.5)
    axes.grid(axis="x", alpha=0.25)
    axes.grid(axis="y", alpha=0.0 if panel.bars else 0.25)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
