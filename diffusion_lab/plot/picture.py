"""Image grids, and plots of samples in the plane; files are written atomically."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.metric import to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 217
INK, BLUE, ORANGE = "#333333", "#2a6fb0", "#d1541f"

Window = tuple[float, float, float, float]  # left, right, bottom, top


def grid(images: Tensor, columns: int | None = None, scale: int | None = None, padding: int = 2) -> Tensor:
    """Arrange images (N, C, H, W) in [0, 1] in a grid, one image (C, height, width) of bytes, with grey gaps.

    Args:
        columns: None makes the grid almost square, without empty cells if possible.
        scale: integer factor of enlargement; None makes tiles at least 64 pixels large.
        padding: width of the gaps in pixels.

    Raises:
        ValueError: for another shape, no image, C other than 1 or 3, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
    columns, scale = columns or _columns(len(images)), scale or math.ceil(64 / max(images.shape[2:]))
    tiles = to_uint8(images.detach()).cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = tiles.shape
    down, right = height + padding, width + padding
    size = math.ceil(count / columns) * down + padding, columns * right + padding
    picture = tiles.new_full((channels, *size), GAP)
    for index, tile in enumerate(tiles):
        y, x = index // columns * down + padding, index % columns * right + padding
        picture[:, y : y + height, x : x + width] = tile
    return picture


def _columns(count: int) -> int:
    root = math.ceil(math.sqrt(count))
    return next((c for c in range(root, int(1.6 * math.sqrt(count)) + 1) if count % c == 0), root)


def in_grey(x: Tensor) -> Tensor:
    """Convert real numbers (..., N, C, H, W) to grey images (..., N, 1, H, C W) in [0, 1], channels side by side.

    Black and white are the smallest and largest value, for frames (T, N, C, H, W) those of the last frame.
    """
    last = x[-1] if x.ndim == 5 else x
    low, high = last.min(), last.max()
    return ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).movedim(-3, -2).flatten(-2).unsqueeze(-3)


def strip(frames: Tensor) -> Tensor:
    """Arrange frames (T, N, C, H, W) in [0, 1] of N samples in a grid: a row per sample, a column per frame."""
    return grid(frames.transpose(0, 1).flatten(0, 1), columns=len(frames))


def save_png(image: Tensor, path: str | Path) -> None:
    """Write an image (C, H, W) of bytes, C = 1 or 3, as PNG."""
    with replacing(path) as temporary:
        _pillow(image).save(temporary, format="PNG")


def save_gif(frames: Tensor, path: str | Path, fps: float = 10.0, hold: float = 2.0) -> None:
    """Write frames (T, N, C, H, W) in [0, 1] as a looping GIF of grids, the last frame for `hold` seconds.

    The grid is padded to multiples of 16 pixels, as video encoders require.
    """
    first, *rest = [_pillow(_padded(grid(images))) for images in frames]
    durations = [round(1000 / fps)] * len(rest) + [round(1000 * hold)]
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _padded(image: Tensor, multiple: int = 16) -> Tensor:
    """Pad an image (C, H, W) with grey on all sides to multiples of a number of pixels."""
    down, right = (-side % multiple for side in image.shape[1:])
    around = (right // 2, right - right // 2, down // 2, down - down // 2)
    return torch.nn.functional.pad(image, around, value=GAP)


def _pillow(image: Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image must be uint8 (1 or 3, H, W), got {image.dtype} {tuple(image.shape)}")
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).cpu().numpy())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Context with a temporary path in the same folder, which is renamed to `path` if nothing is raised."""
    path = Path(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plane_plot(
    samples: Tensor,
    path: str | Path,
    *,
    density: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    reference: Tensor | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Plot samples (N, 2) over the true density and, in a second panel, the learned score over the true density.

    Args:
        density: points (M, 2) -> log p (M,); None takes a histogram of `reference` (M, 2), if given.
        score: points (M, 2) -> (M, 2), drawn as arrows of compressed length; None omits the panel.
        limits: of both axes; None fits them to `reference`, or else to the samples.

    Raises:
        ValueError: for points of another shape or that are not finite.
    """
    points = plane_points(samples)
    window = (*limits, *limits) if limits else fitted_window(points if reference is None else plane_points(reference))
    figure, panels = square_panels(1 if score is None else 2, title)
    image = density_image(window, density, reference, samples)
    for axes in panels:
        if image is not None:
            # The square root makes the tails visible; vmax avoids dark blues, on which points are hard to see.
            axes.imshow(image**0.5, extent=window, origin="lower", cmap="Blues", vmin=0, vmax=1.7)
        set_window(axes, window)
    size = np.clip(10_000 / len(points), 2, 16)
    panels[0].scatter(*points.T, s=size, color=ORANGE, alpha=0.7, linewidths=0)
    panels[0].set_title(f"{len(points):,} samples")
    if score is not None:
        draw_arrows(panels[1], window, score, samples)
        panels[1].set_title("learned score")
    with replacing(path) as temporary:
        figure.savefig(temporary)


def trajectory_plane(frames: Tensor, path: str | Path, times: Sequence[float] | None = None, title: str = "") -> None:
    """Plot frames (T, N, 2) of N points in a row of panels; the colour of a point is the direction of its end."""
    from matplotlib.colors import hsv_to_rgb

    film = np.stack([plane_points(frame) for frame in frames])
    x, y = (film[-1] - np.median(film[-1], axis=0)).T
    hue = np.arctan2(y, x) / (2 * np.pi) + 0.5
    colours = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), np.full_like(hue, 0.8)], 1))
    windows = [fitted_window(points) for points in film]
    widths = [right - left for left, right, _, _ in windows]
    shared = max(widths) <= 4 * min(widths)  # if the noise is much wider, each panel has its own window
    figure, panels = square_panels(len(film), title, columns=6, side=2.6)
    for index, (axes, points) in enumerate(zip(panels, film, strict=True)):
        window = windows[int(np.argmax(widths)) if shared else index]
        axes.scatter(*points.T, s=np.clip(4000 / len(points), 1, 10), c=colours, linewidths=0)
        set_window(axes, window)
        axes.set_title("" if times is None else f"t = {float(times[index]):.3g}", fontsize=11)
        axes.set_xlabel("" if shared else f"{window[1] - window[0]:.3g} wide", fontsize=10, color=INK)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def density_image(
    window: Window, density: Callable[[Tensor], Tensor] | None, reference: Tensor | None, like: Tensor
) -> np.ndarray | None:
    """Return the density on a lattice, rows from the bottom, scaled to a maximum of 1."""
    if density is not None:
        parts = [to_numpy(density(part)) for part in cell_centres(window, 200, like).split(4096)]
        values = np.exp(np.concatenate(parts)).reshape(200, 200)
    elif reference is not None:
        left, right, bottom, top = window
        x, y = plane_points(reference).T
        values = np.histogram2d(y, x, bins=64, range=((bottom, top), (left, right)))[0]
    else:
        return None
    return values / max(values.max(), 1e-300)


def draw_arrows(axes: Axes, window: Window, score: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Draw the score s as arrows of length |s| / (|s| + median |s|), in units of lattice cells."""
    lattice = cell_centres(window, 24, like)
    vectors = to_numpy(score(lattice))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    arrows = vectors / (length + np.median(length) + 1e-12)
    arrows *= 1.1 * (window[1] - window[0]) / 24
    axes.quiver(
        *to_numpy(lattice).T, *arrows.T, angles="xy", scale_units="xy", scale=1, pivot="mid",
        color=INK, width=0.0028, headwidth=4, headlength=4.5, headaxislength=4,
    )  # fmt: skip


def cell_centres(window: Window, side: int, like: Tensor) -> Tensor:
    """Return the centres (side^2, 2) of the cells of a square lattice, rows from the bottom."""
    left, right, bottom, top = window
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = torch.meshgrid(bottom + (top - bottom) * steps, left + (right - left) * steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1).to(like.device, like.dtype)


def fitted_window(points: np.ndarray) -> Window:
    """Return a square window that contains all points except outliers, with a margin."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    x, y = (low + high) / 2
    half = 0.58 * max((high - low).max(), 1e-6)
    return x - half, x + half, y - half, y + half


def square_panels(panels: int, title: str, columns: int = 2, side: float = 6.0) -> tuple[Figure, Sequence[Axes]]:
    """Create a figure of square panels, without pyplot, which keeps figures in memory."""
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(side * columns, side * rows), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=14, color=INK)
    return figure, [figure.add_subplot(rows, columns, 1 + i) for i in range(panels)]


def set_window(axes: Axes, window: Window) -> None:
    axes.set(xlim=window[:2], ylim=window[2:], xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#bbbbbb")


def plane_points(values: Tensor) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] != 2 or not torch.isfinite(values).all():
        raise ValueError(f"points must be finite and of shape (N, 2); these are {tuple(values.shape)}")
    return to_numpy(values)


def to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
