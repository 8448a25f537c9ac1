"""Curves: noise schedules, and quality against cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from diffusion_lab.plot.picture import BLUE, INK, ORANGE, replacing, square_panels, to_numpy

if TYPE_CHECKING:
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
    ratio.set(title=r"log SNR  =  $\log\ \alpha^2/\sigma^2$")
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
    counts = Counter(point[0] for points in lines.values() for point in points)
    if len(counts) <= 8:
        axes.set_xticks(apart(counts))
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


def apart(counts: Mapping[float, int], least: float = 0.05) -> list[float]:
    """Positive places with their frequencies, without those whose labels would overlap more frequent ones.

    Two places are apart if the logarithm of their ratio is at least `least` of that of the largest and smallest.
    """
    kept: list[float] = []
    for place in sorted(counts, key=lambda place: (-counts[place], place)):
        if all(abs(math.log(place / other)) >= least * math.log(max(counts) / min(counts)) for other in kept):
            kept.append(place)
    return sorted(kept)


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
