"""Curves: noise schedules, and quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diffusion_lab.picture import BLUE, INK, ORANGE, replacing, square_panels, to_numpy

COLOURS = (BLUE, ORANGE, "#3b8f4a", "#8456a8", "#b08a1e", "#c2477f", "#3a9aa0", INK)


def schedule_plot(times: Tensor, alpha: Tensor, sigma: Tensor, path: str | Path, title: str = "") -> None:
    """Plot alpha, sigma and the log signal-to-noise ratio log(alpha^2 / sigma^2) at times (T,)."""
    t, figure, (scales, ratio) = to_numpy(times), *square_panels(2, title)
    scales.plot(t, to_numpy(alpha), color=BLUE, linewidth=2.2, label=r"signal  $\alpha(t)$")
    scales.plot(t, to_numpy(sigma), color=ORANGE, linewidth=2.2, label=r"noise  $\sigma(t)$")
    scales.set(title="scales", yscale="log" if sigma.max() > 5 else "linear")
    scales.legend(frameon=False, fontsize=12)
    log_snr = 2 * (alpha.double().log() - sigma.double().log())
    ratio.plot(t, to_numpy(log_snr), color=INK, linewidth=2.2)
    ratio.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ratio.set(title=r"$\log\ \alpha^2/\sigma^2$")
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
    """Plot named lines of points (x, y) on logarithmic axes, and `level`, what real data score, as a dotted line."""
    figure, (axes,) = square_panels(1, title, side=7.0)
    for index, (name, points) in enumerate(lines.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^v"[index // len(COLOURS) % 5]}
        axes.plot(*zip(*sorted(points), strict=True), label=name, linewidth=1.8, markersize=6, **style)
    if level is not None:
        axes.axhline(level, color=INK, linewidth=1, linestyle=":", label="real training data")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary)
