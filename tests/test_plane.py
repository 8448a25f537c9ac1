"""Distributions of the plane: density, score and sample against quadrature, autograd and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffusion_lab.data.toy2d_density import TARGETS

NAMES = list(TARGETS)
LEVELS = [(1.0, 0.0), (0.8, 0.3), (0.05, 0.6)]
CELL, FINE = 0.75, 16  # the grid's coarse cells are the board's squares, so that the clean board has no edge inside
STDS = {
    "eight_gaussians": (0.854, 0.854),
    "moons": (1.046, 0.597),
    "checkerboard": (0.866, 0.866),
    "swiss_roll": (0.831, 0.872),
    "two_modes": (0.825, 0.825),
}


def density_on_grid(target, alpha: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Midpoints (n, n, 2) of a grid on [-3, 3]^2 and the probability of each of its cells (n, n)."""
    step = CELL / FINE
    axis = torch.arange(-3, 3, step, dtype=torch.float64) + step / 2
    points = torch.cartesian_prod(axis, axis)
    mass = torch.cat([target.log_density(part, alpha, sigma).exp() for part in points.split(4096)]) * step**2
    return points.reshape(len(axis), len(axis), 2), mass.reshape(len(axis), len(axis))


@pytest.mark.parametrize("alpha, sigma", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one_and_predicts_the_sample(name: str, alpha: float, sigma: float) -> None:
    target = TARGETS[name]()
    _, mass = density_on_grid(target, alpha, sigma)
    assert abs(mass.sum().item() - 1) < 1e-5

    rng = torch.Generator().manual_seed(5)
    count = 40_000
    points = alpha * target.sample(count, rng) + sigma * torch.randn(count, 2, generator=rng)
    cells = ((points + 3) / CELL).long().clamp(0, 7)
    seen = torch.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64).reshape(8, 8) / count
    expected = mass.reshape(8, FINE, 8, FINE).sum((1, 3))
    assert ((seen - expected).abs() < 4.5 * (expected * (1 - expected) / count).sqrt() + 2 / count).all()


@pytest.mark.parametrize("alpha, sigma", [*LEVELS, (1e-3, 1.0), (0.0, 1.0), (1.0, 1e-3)])
@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_gradient_of_the_log_density(name: str, alpha: float, sigma: float) -> None:
    target = TARGETS[name]()
    rng = torch.Generator().manual_seed(1)
    x = alpha * target.sample(300, rng).double() + (sigma + 0.01) * torch.randn(300, 2, generator=rng).double()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_density(x, alpha, sigma).sum(), x)
    score = target.score(x.detach(), alpha, sigma)
    scale = 1 + gradient.abs().max()
    assert ((score - gradient).abs().max() / scale).item() < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_one_level_per_point_equals_point_by_point(name: str) -> None:
    target = TARGETS[name]()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double()
    alpha, sigma = torch.tensor([1.0, 0.9, 0.5, 0.1]), torch.tensor([0.01, 0.2, 0.7, 1.0])
    alone = [(x[i : i + 1], alpha[i].item(), sigma[i].item()) for i in range(4)]
    torch.testing.assert_close(
        target.log_density(x, alpha, sigma), torch.cat([target.log_density(*args) for args in alone])
    )
    torch.testing.assert_close(
        target.score(x, alpha[:, None], sigma[:, None]), torch.cat([target.score(*args) for args in alone])
    )
    assert target.score(x.float(), alpha, sigma).dtype == torch.float32


@pytest.mark.parametrize("name, alpha, sigma", [("eight_gaussians", 0.7, 0.4), ("two_modes", 1.0, 0.0)])
def test_mixtures_equal_torch_distributions(name: str, alpha: float, sigma: float) -> None:
    modes, std = TARGETS[name]().modes, {"eight_gaussians": 0.1, "two_modes": 0.2}[name]
    spread = math.sqrt((alpha * std) ** 2 + sigma**2)
    parts = Independent(Normal(alpha * modes.means, spread), 1)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    truth = MixtureSameFamily(Categorical(modes.weights), parts).log_prob(x)
    torch.testing.assert_close(TARGETS[name]().log_density(x, alpha, sigma), truth, rtol=1e-10, atol=1e-10)


def test_noised_checkerboard_equals_a_convolution_by_quadrature() -> None:
    alpha, sigma, count = 0.8, 0.25, 240
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 3 - 1.5
    board = torch.cartesian_prod(axis, axis)
    square = ((board + 1.5) / 0.75).floor().long()
    dark = board[square.sum(1) % 2 == 0]
    x = torch.tensor([[0.0, 0.0], [0.3, -0.2], [1.4, 1.4], [-2.0, 0.4]], dtype=torch.float64)
    kernel = torch.exp(-(x[:, None] - alpha * dark).square().sum(-1) / (2 * sigma**2))
    truth = kernel.mean(1) / (2 * math.pi * sigma**2)
    torch.testing.assert_close(
        TARGETS["checkerboard"]().log_density(x, alpha, sigma).exp(), truth, rtol=1e-3, atol=1e-9
    )


def test_clean_checkerboard_is_uniform_on_the_dark_squares() -> None:
    target = TARGETS["checkerboard"]()
    inside, outside = torch.tensor([[-1.0, -1.0], [1.4, 1.4]]).double(), torch.tensor([[-1.0, -0.4], [1.6, 1.4]])
    torch.testing.assert_close(target.log_density(inside), torch.full((2,), -math.log(8 * 0.75**2)).double())
    assert (target.score(inside) == 0).all()
    assert (target.log_density(outside) < -1e8).all()
    assert target.score(outside)[1, 0] < 0  # back to the board


CURVES = {
    "moons": [
        (lambda t: (math.cos(t), math.sin(t)), 0.0, math.pi),
        (lambda t: (1 - math.cos(t), 0.5 - math.sin(t)), 0.0, math.pi),
    ],
    "swiss_roll": [(lambda t: (t * math.cos(t), t * math.sin(t)), 1.5 * math.pi, 4.5 * math.pi)],
}


@pytest.mark.parametrize("name", list(CURVES))
def test_curves_equal_their_line_integral(name: str) -> None:
    def mean(f) -> float:
        """Average of f(point) over the branches by adaptive quadrature."""
        pieces = [quad(lambda t: f(np.array(c(t))), a, b, limit=400)[0] / (b - a) for c, a, b in CURVES[name]]
        return sum(pieces) / len(pieces)

    centre = np.array([mean(lambda p, d=d: p[d]) for d in (0, 1)])
    scale = 0.85 / math.sqrt(mean(lambda p: ((p - centre) ** 2).mean()))
    target, std = TARGETS[name](), 0.05
    for parameter in (0.1, 0.45, 0.8):
        c, a, b = CURVES[name][0]
        x = scale * (np.array(c(a + parameter * (b - a))) - centre) + 0.04
        truth = mean(
            lambda p, x=x: math.exp(-((x - scale * (p - centre)) ** 2).sum() / (2 * std**2)) / (2 * math.pi * std**2)
        )
        assert target.log_density(torch.tensor(x)[None]).item() == pytest.approx(math.log(truth), abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_as_documented(name: str) -> None:
    points = TARGETS[name]().sample(40_000, torch.Generator().manual_seed(3))
    torch.testing.assert_close(points.std(0), torch.tensor(STDS[name]), rtol=0.015, atol=0)


def test_mode_weights_count_the_nearest_mode() -> None:
    target = TARGETS["two_modes"]()
    points = torch.tensor([[-1.0, -0.8], [1.0, 1.0], [0.9, 0.2], [2.0, 0.0]])
    assert target.mode_weights(points).tolist() == [0.25, 0.75]
    drawn = target.mode_weights(target.sample(20_000, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn, target.modes.weights, atol=4 * math.sqrt(0.16 / 20_000), rtol=0)
    assert len(TARGETS["checkerboard"]().mode_weights(points)) == 8
    with pytest.raises(ValueError, match="no modes"):
        TARGETS["moons"]().mode_weights(points)
