"""Pictures hold the right pixels, and are written whole or not at all."""

from __future__ import annotations

import math
import runpy
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from diffusion_lab.plot import picture


def pixels(path) -> torch.Tensor:
    return torch.as_tensor(np.array(Image.open(path)))


def test_grid_puts_every_pixel_where_it_belongs():
    images = torch.arange(5 * 3 * 2 * 3).reshape(5, 3, 2, 3) / 255
    got = picture.grid(images, columns=2, scale=4, padding=3)
    assert got.dtype == torch.uint8 and got.shape == (3, 3 + 3 * (8 + 3), 3 + 2 * (12 + 3))
    expected = torch.full_like(got, picture.GAP)
    for n in range(5):
        for y in range(8):
            for x in range(12):
                row, column = 3 + n // 2 * 11 + y, 3 + n % 2 * 15 + x
                expected[:, row, column] = (images[n, :, y // 4, x // 4] * 255).round().to(torch.uint8)
    assert torch.equal(got, expected)
    assert (got[:, -11:, -15:] == picture.GAP).all()  # the sixth tile is missing


def test_grid_rounds_to_nearest_and_clamps():
    values = torch.tensor([0.49, 0.5, 1.49, 254.4, 254.5]) / 255
    values = torch.cat([values, torch.tensor([-0.1, 1.01, 3.0])])
    got = picture.grid(values.reshape(1, 1, 1, 8), columns=1, scale=1, padding=0)
    assert got.flatten().tolist() == [0, 1, 1, 254, 255, 0, 255, 255]


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 3), (32, 2), (48, 2), (64, 1), (256, 1)])
def test_grid_enlarges_small_tiles(side, scale):
    assert picture.grid(torch.zeros(1, 1, side, side), padding=0).shape == (1, side * scale, side * scale)


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (3, 2), (6, 3), (7, 3), (8, 4), (12, 4), (64, 8), (100, 10)]
)
def test_grid_is_nearly_square(count, columns):
    rows = math.ceil(count / columns)
    assert picture.grid(torch.zeros(count, 1, 1, 1), scale=1, padding=0).shape == (1, rows, columns)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(0, 1, 2, 2), "1 or 3"),
        (torch.zeros(1, 2, 2, 2), "1 or 3"),
        (torch.zeros(1, 2, 2), "1 or 3"),
        (torch.full((1, 1, 2, 2), math.nan), "NaN"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "floats"),
    ],
)
def test_grid_refuses(images, words):
    with pytest.raises(ValueError, match=words):
        picture.grid(images)


def test_strip_has_a_row_per_sample_and_a_column_per_time():
    frames = torch.arange(6).reshape(3, 2, 1, 1, 1) / 255  # value = 2 t + n
    got = picture.strip(frames)
    assert got.shape == (1, 2 + 2 * 66, 2 + 3 * 66)
    assert got[0, 2::66, 2::66].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_exactly(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture.save_png(image, tmp_path / "new" / "a.png")
    assert torch.equal(pixels(tmp_path / "new" / "a.png"), image[0] if channels == 1 else image.permute(1, 2, 0))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    for wrong in (image.float(), image[0], torch.cat([image, image])):
        with pytest.raises(ValueError, match="uint8"):
            picture.save_png(wrong, tmp_path / "new" / "a.png")


def test_gif_holds_the_last_frame(tmp_path):
    frames = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1, 1).expand(3, 4, 1, 8, 8)
    picture.save_gif(frames, tmp_path / "film.gif", fps=5, hold=1.5)
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.info["loop"], film.size) == (3, 0, (144, 144)), "sides that encoders of video take"
        seen = []
        for index in range(3):
            film.seek(index)
            seen.append((film.info["duration"], film.convert("L").getpixel((35, 35))))
            assert film.convert("L").getpixel((2, 2)) == film.convert("L").getpixel((141, 141)) == picture.GAP
    assert seen == [(200, 0), (200, 128), (1500, 255)]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    picture.save_png(torch.zeros(1, 4, 4, dtype=torch.uint8), path)
    before = path.read_bytes()

    def full(self, file, *args, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        picture.save_png(torch.ones(1, 4, 4, dtype=torch.uint8), path)
    with pytest.raises(OSError, match="No space"):
        picture.save_gif(torch.zeros(2, 1, 1, 2, 2), path)
    with pytest.raises(OSError, match="No space"):
        picture.plane_plot(torch.rand(9, 2), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


MEAN, STD = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 0.25])


def log_density(x: torch.Tensor) -> torch.Tensor:
    return -((x - MEAN) / STD).square().sum(1) / 2


def test_plane_plot_shows_samples_density_and_score(tmp_path, drawn):
    """A Gaussian: the image peaks at the mean with the right widths, and the arrows point to it along (mean - x)/var."""
    generator = torch.Generator().manual_seed(0)
    samples = MEAN + STD * torch.randn(500, 2, generator=generator)
    picture.plane_plot(
        samples, tmp_path / "p.png", density=log_density, score=lambda x: (MEAN - x) / STD**2, limits=(-2, 3)
    )
    left, right = drawn[0].axes
    assert pixels(tmp_path / "p.png").shape[:2] == (600, 1200)
    np.testing.assert_array_equal(left.collections[0].get_offsets(), samples.double())
    for axes in (left, right):
        assert axes.get_xlim() == (-2, 3) == axes.get_ylim() and axes.get_aspect() == 1
        image = axes.images[0]
        assert image.get_extent() == [-2, 3, -2, 3] and image.origin == "lower"
        centres = -2 + 5 * (np.arange(200) + 0.5) / 200
        x, y = np.meshgrid(centres, centres)  # rows are y
        truth = np.exp(-((x - 1) ** 2) / 0.5 - (y + 0.5) ** 2 / 0.125)
        np.testing.assert_allclose(np.asarray(image.get_array()) ** 2, truth / truth.max(), atol=1e-6)
    (arrows,) = right.collections
    points = np.stack([arrows.X, arrows.Y], 1)
    assert points.shape == (576, 2) and np.ptp(points, axis=0).tolist() == pytest.approx([5 * 23 / 24] * 2)
    score = (MEAN.numpy() - points) / STD.numpy() ** 2
    drawn_vectors = np.stack([arrows.U, arrows.V], 1)
    length = np.linalg.norm(score, axis=1, keepdims=True)
    expected = score / (length + np.median(length)) * 1.1 * 5 / 24
    np.testing.assert_allclose(drawn_vectors, expected, atol=1e-6)


def test_plane_plot_without_density_shows_a_histogram_of_the_reference(tmp_path, drawn):
    reference = torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 2.0]])
    picture.plane_plot(torch.zeros(5, 2), tmp_path / "p.png", reference=reference, limits=(-4, 4))
    (axes,) = drawn[0].axes
    counts = np.asarray(axes.images[0].get_array()) ** 2 * 3
    expected = np.zeros((64, 64))
    expected[32, 32], expected[48, 40] = 3, 1  # row is y
    np.testing.assert_allclose(counts, expected, atol=1e-12)


def test_plane_plot_fits_its_window_to_the_points_but_not_to_strays(tmp_path, drawn):
    points = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [4.0, 2.0]
    )
    points[0] = 1000
    picture.plane_plot(points, tmp_path / "p.png")
    picture.plane_plot(torch.full((5, 2), 50.0), tmp_path / "p.png", reference=points)
    for figure in drawn:
        (axes,) = figure.axes
        assert axes.get_xlim() == pytest.approx((2 - 2.3, 2 + 2.3), abs=0.05)
        assert axes.get_ylim() == pytest.approx((1 - 2.3, 1 + 2.3), abs=0.05)


@pytest.mark.parametrize("points", [torch.zeros(5, 3), torch.full((5, 2), math.inf), torch.zeros(2)])
def test_points_that_cannot_be_drawn_are_refused(tmp_path, points):
    with pytest.raises(ValueError, match=r"finite and of shape \(N, 2\)"):
        picture.plane_plot(points, tmp_path / "p.png", limits=(0, 1))
    with pytest.raises(ValueError, match=r"finite and of shape \(N, 2\)"):
        picture.trajectory_plane(points[None], tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def test_trajectory_plane_has_a_panel_per_frame(tmp_path, drawn):
    end = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(25, 1)
    frames = torch.stack([end * s for s in (3.0, 2.0, 1.0)])
    picture.trajectory_plane(frames, tmp_path / "t.png", times=[1, 0.5, 0], title="x")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["t = 1", "t = 0.5", "t = 0"]
    for axes, frame in zip(panels, frames, strict=True):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), frame)
        assert axes.get_xlim() == pytest.approx((-3.48, 3.48)) and axes.get_xlabel() == ""
    colours = panels[0].collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == 4 and (colours[:4] == colours[4:8]).all()


def test_trajectory_plane_gives_each_panel_its_window_if_noise_dwarfs_the_data(tmp_path, drawn):
    end = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(25, 1)
    picture.trajectory_plane(torch.stack([end * 50] * 6 + [end]), tmp_path / "t.png")
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["116 wide"] * 6 + ["2.32 wide"]
    assert drawn[0].axes[6].get_xlim() == pytest.approx((-1.16, 1.16))
    assert pixels(tmp_path / "t.png").shape[:2] == (520, 1560)  # seven panels, six to a row


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import raises
    picture.plane_plot(torch.rand(9, 2), tmp_path / "p.png", score=lambda x: -x)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    names = runpy.run_path(picture.__file__, run_name=picture.__name__)
    names["save_png"](names["grid"](torch.zeros(1, 1, 2, 2)), tmp_path / "g.png")
    with pytest.raises(ImportError):
        names["plane_plot"](torch.rand(9, 2), tmp_path / "q.png")


def test_real_numbers_become_grey_images_with_channels_side_by_side() -> None:
    x = torch.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5).float() - 7
    grey = picture.in_grey(x)
    assert grey.shape == (2, 1, 3, 20) and (grey.min(), grey.max()) == (0, 1)
    assert torch.allclose(grey[1, 0, 2, 5:10] * 119 - 7, x[1, 1, 2])
    film = picture.in_grey(torch.stack([100 * x, x]))
    assert torch.equal(film[1], grey) and film.min() == 0 and film.max() == 1
    assert picture.in_grey(torch.ones(1, 2, 3, 3)).isfinite().all()
