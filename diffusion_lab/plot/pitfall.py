"""Plots of the two pitfalls of score matching at one noise level (Song & Ermon 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.toy2d_density import Toy2dDensity, nearest_mode
from diffusion_lab.plot.charts import COLOURS
from diffusion_lab.plot.picture import (
    BLUE,
    cell_centres,
    density_image,
    draw_arrows,
    fitted_window,
    plane_points,
    replacing,
    set_window,
    square_panels,
    to_numpy,
)

CELLS = 100
SHOWN = 1000


class ScoreError(NamedTuple):
    """Error of a score: log10 |s - true s| and whether a cell contains data, both (100, 100), rows from the bottom; and
    the medians of |s - true s| over the cells with data and over the others."""

    log10: Tensor
    has_data: Tensor
    with_data: float
    without_data: float


@torch.no_grad()
def score_error_plot(
    points: Tensor,
    target: Toy2dDensity,
    score: Callable[[Tensor], Tensor],
    path: str | Path,
    *,
    sigma: float = 0.0,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> ScoreError:
    """Plot the true score, the learned score, and log10 of the length of their difference, with the data.

    The score is learned only near the data; between and around the modes it is arbitrary (Song & Ermon 2019, section
    3.2.1).

    Args:
        points: the data (N, 2); 1,000 of them are shown.
        score: points (M, 2) -> (M, 2), the learned score.
        sigma: noise level whose score was learned; the truth is that of the data perturbed by it.
        limits: of both axes; None fits them to the data.

    Raises:
        ValueError: for points of another shape or that are not finite.
    """
    data = plane_points(points)
    window = (*limits, *limits) if limits else fitted_window(data)
    true_score = partial(target.score, alpha=1.0, sigma=sigma)
    error = _score_error(data, score, true_score, window, points)
    figure, panels = square_panels(3, title, columns=3, side=5.0)
    image = density_image(window, lambda x: target.log_density(x, 1.0, sigma), None, points)
    for axes, field, name in zip(panels, (true_score, score), ("true score", "learned score"), strict=False):
        axes.imshow(image**0.5, extent=window, origin="lower", cmap="Blues", vmin=0, vmax=1.7)
        draw_arrows(axes, window, field, points)
        axes.set_title(name)
    shown = panels[2].imshow(to_numpy(error.log10), extent=window, origin="lower", cmap="YlOrRd")
    figure.colorbar(shown, ax=panels[2], label=r"$\log_{10}$ error of the score", shrink=0.8)
    panels[2].set_title(f"median error {error.with_data:.2g} with data, {error.without_data:.2g} without")
    for axes in panels:
        axes.scatter(*data[:SHOWN].T, s=2, color=BLUE, alpha=0.5, linewidths=0)
        set_window(axes, window)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return error


def _score_error(
    data: np.ndarray,
    score: Callable[[Tensor], Tensor],
    true_score: Callable[[Tensor], Tensor],
    window: tuple[float, float, float, float],
    like: Tensor,
) -> ScoreError:
    parts = cell_centres(window, CELLS, like).split(4096)
    error = torch.cat([(score(part) - true_score(part)).double().norm(dim=1) for part in parts]).cpu()
    left, right, bottom, top = window
    x, y = data.T
    counts = np.histogram2d(y, x, bins=CELLS, range=((bottom, top), (left, right)))[0]
    error, has_data = error.reshape(CELLS, CELLS), torch.as_tensor(counts > 0)
    medians = (float(error[where].median()) for where in (has_data, ~has_data))
    return ScoreError(error.clamp(min=1e-12).log10(), has_data, *medians)


def mode_weights_plot(
    samples: Mapping[str, Tensor],
    target: Toy2dDensity,
    path: str | Path,
    *,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> dict[str, Tensor]:
    """Plot samples side by side, coloured by their nearest mode, with the weights of the modes; return the weights.

    For modes that are far apart, the score hardly depends on their weights, so that Langevin dynamics samples them
    wrongly (Song & Ermon 2019, section 3.2.2).

    Args:
        samples: name -> points (N, 2); 1,000 of them are shown, all are counted.
        limits: of both axes; None fits them to the last of the samples.

    Raises:
        ValueError: for points of another shape or that are not finite, and for a target without modes.
    """
    clouds = {name: plane_points(points)[:SHOWN] for name, points in samples.items()}
    weights = {name: target.mode_weights(points) for name, points in samples.items()}
    window = (*limits, *limits) if limits else fitted_window(list(clouds.values())[-1])
    figure, panels = square_panels(len(samples), title, columns=len(samples), side=4.0)
    like = torch.zeros(1)
    image = density_image(window, target.log_density, None, like)
    for axes, (name, cloud) in zip(panels, clouds.items(), strict=True):
        axes.imshow(image**0.5, extent=window, origin="lower", cmap="Greys", vmin=0, vmax=2.5)
        modes = nearest_mode(torch.as_tensor(cloud), target.modes).tolist()
        axes.scatter(*cloud.T, s=4, c=[COLOURS[mode % len(COLOURS)] for mode in modes], linewidths=0)
        percent = " : ".join(f"{100 * weight:.0f}" for weight in weights[name].tolist())
        axes.set_title(f"{name}\n{percent} %")
        set_window(axes, window)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return weights
