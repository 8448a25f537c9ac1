"""The pictures of what goes wrong at one noise level hold the right numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_lab.data.toy2d_density import moons, two_modes
from diffusion_lab.plot.pitfall import mode_weights_plot, score_error_plot


def test_score_error_plot_draws_the_error_where_it_is(tmp_path, drawn):
    """A learned score that is off by (0.3, 0.4) right of x = 0 and by 100 times that left of it."""
    target, sigma = two_modes(), 0.2
    points = target.sample(20_000, torch.Generator().manual_seed(0))
    points = points[points[:, 0] > 0]
    offset = torch.tensor([0.3, 0.4])

    def learned(x):
        return target.score(x, 1.0, sigma) + torch.where(x[:, :1] > 0, offset, 100 * offset)

    error = score_error_plot(points, target, learned, tmp_path / "e.png", sigma=sigma, limits=(-2, 2), title="x")
    right = math.log10(0.5) * torch.ones(100, 50).double()
    torch.testing.assert_close(error.log10, torch.cat([right + 2, right], 1), rtol=0, atol=1e-4)
    assert (error.with_data, error.without_data) == pytest.approx((0.5, 50.0), rel=1e-4)
    column, row = ((points[points.abs().amax(1) < 2].double() + 2) / 0.04).long().T
    expected = torch.zeros(100, 100, dtype=torch.bool)
    expected[row, column] = True
    assert torch.equal(error.has_data, expected) and not torch.equal(expected, expected.T)
    figure = drawn[0]
    assert (tmp_path / "e.png").stat().st_size > 0 and figure.get_suptitle() == "x"
    true, wrong, difference = figure.axes[:3]
    np.testing.assert_array_equal(difference.images[0].get_array(), error.log10)
    assert difference.images[0].origin == "lower" and difference.images[0].get_extent() == [-2, 2, -2, 2]
    assert difference.get_title() == "median error 0.5 with data, 50 without"
    for axes, field in ((true, lambda x: target.score(x, 1.0, sigma)), (wrong, learned)):
        arrows = next(c for c in axes.collections if hasattr(c, "U"))
        at = torch.as_tensor(np.stack([arrows.X, arrows.Y], 1))
        got, expected = torch.as_tensor(np.stack([arrows.U, arrows.V], 1)), field(at)
        cosine = (got * expected).sum(1) / got.norm(dim=1) / expected.norm(dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-3)
    for axes in (true, wrong, difference):
        np.testing.assert_array_equal(axes.collections[-1].get_offsets(), points[:1000].double())
        assert axes.get_xlim() == (-2, 2) == axes.get_ylim()
    density = np.asarray(true.images[0].get_array()) ** 2  # of the perturbed data: std (0.2^2 + 0.2^2)^(1/2)
    half = density[150, 100:] > 0.5 * density[150].max()
    assert half.sum() * 4 / 200 == pytest.approx(2 * math.sqrt(2 * math.log(2) * 0.08), abs=0.05)


def test_mode_weights_plot_counts_all_and_names_them(tmp_path, drawn):
    target = two_modes()
    left, right = target.means.float()
    samples = {
        "plain": torch.cat([left.expand(900, 2), right.expand(300, 2)]),
        "data": torch.cat([left.expand(300, 2), right.expand(900, 2)]),
    }
    weights = mode_weights_plot(samples, target, tmp_path / "w.png", limits=(-2, 2))
    assert weights["plain"].tolist() == [0.75, 0.25] and weights["data"].tolist() == [0.25, 0.75]
    assert (tmp_path / "w.png").stat().st_size > 0
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["plain\n75 : 25 %", "data\n25 : 75 %"]
    for axes, cloud in zip(panels, samples.values(), strict=True):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), cloud[:1000])
        colours, modes = axes.collections[0].get_facecolors(), cloud[:1000, 0] > 0
        assert len(np.unique(colours, axis=0)) == 2 and len(np.unique(colours[modes.numpy()], axis=0)) == 1
        peak = np.asarray(axes.images[0].get_array())
        assert np.unravel_index(peak.argmax(), peak.shape) in {(149, 149), (149, 150), (150, 149), (150, 150)}


def test_pictures_refuse_what_they_cannot_show(tmp_path):
    points = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="no modes"):
        mode_weights_plot({"data": points}, moons(), tmp_path / "w.png")
    with pytest.raises(ValueError, match="finite"):
        mode_weights_plot({"data": points / 0}, two_modes(), tmp_path / "w.png")
    with pytest.raises(ValueError, match="finite"):
        score_error_plot(points[:, :1], two_modes(), lambda x: x, tmp_path / "e.png")
    assert list(tmp_path.iterdir()) == []
