"""Curves show the numbers they are given, with axes that can be read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.plot import charts


def test_schedule_plot_draws_its_numbers(tmp_path, drawn):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    charts.schedule_plot(t, (1 - t).sqrt(), t.sqrt(), tmp_path / "s.png", "linear in the variance")
    scales, ratio = drawn[0].axes
    np.testing.assert_allclose(scales.lines[0].get_xydata(), np.stack([t, (1 - t) ** 0.5], 1))
    np.testing.assert_allclose(scales.lines[1].get_xydata(), np.stack([t, t**0.5], 1))
    x, y = ratio.lines[0].get_data()
    np.testing.assert_allclose(y[1:-1], np.log((1 - x[1:-1]) / x[1:-1]), atol=1e-12)
    assert np.isfinite(ratio.get_ylim()).all() and drawn[0].get_suptitle() == "linear in the variance"
    assert scales.get_yscale() == "linear" and Image.open(tmp_path / "s.png").size == (1200, 600)
    charts.schedule_plot(t, torch.ones(11), 0.01 * 5000**t, tmp_path / "s.png")
    assert drawn[1].axes[0].get_yscale() == "log"


@pytest.mark.parametrize("low, high, words", [
    (5, 60, {"5", "10", "20", "50"}), (0.002, 0.05, {"0.002", "0.01"}), (3, 4e5, {"10", "1,000", "100,000"}),
])  # fmt: skip
def test_ticks_of_a_logarithmic_axis_are_numbers_as_they_are_read(tmp_path, drawn, low, high, words):
    charts.curves({"a": [(1, low), (1000, high)]}, tmp_path / "p.png", x="x", y="y")
    (axes,) = drawn[-1].axes
    drawn[-1].canvas.draw()
    shown = [label.get_text() for label in axes.get_yticklabels(which="both")]
    assert words <= set(shown) and not any("$" in word or "times" in word for word in shown), shown


def test_the_labels_of_the_points_do_not_overlap(tmp_path, drawn):
    """Heun's method has 2 N - 1 evaluations beside the N of others: 19 and 20, of which the more frequent is labelled."""
    counts = {"ddim": (5, 10, 20, 50), "unipc": (5, 10, 20, 50), "heun": (9, 19, 39, 99)}
    charts.curves({name: [(n, 1.0) for n in line] for name, line in counts.items()}, tmp_path / "p.png", x="x", y="y")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    boxes = sorted(label.get_window_extent().extents[[0, 2]].tolist() for label in labels)
    assert all(right < left for (_, right), (left, _) in pairwise(boxes))
    assert {"5", "10", "20", "50"} <= {label.get_text() for label in labels}
