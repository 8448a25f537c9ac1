"""NCSNv2's techniques against recorded values, brute force and closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lab.process.techniques import (
    advise,
    largest_distance,
    number_of_levels,
    overlap,
    ratio,
    step_size,
    variance_ratio,
)


@pytest.fixture(params=["cifar10_32", "celeba_64", "church_96", "bedroom_128", "tower_128", "ffhq_256"])
def published(recorded, request):
    """One of the paper's settings, and the values computed from it."""
    return recorded("ncsnv2_techniques").meta["notes"]["rows"][request.param]


def brute_force(points: torch.Tensor) -> float:
    rows = points.double().flatten(1).numpy()
    return max(math.dist(a, b) for a in rows for b in rows)


class Largest(TorchDispatchMode):
    """Size in bytes of the largest tensor that any operation created."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        own = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in own:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


# --------------------------------------------------------------------------- technique 1


@pytest.mark.parametrize("block", [1, 3, 20, 39, 40, 512])
def test_largest_distance_of_the_recorded_points(recorded, block):
    record = recorded("ncsnv2_techniques")
    truth = record["technique1.sigma1"].item()
    assert largest_distance(record["technique1.points"], block) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 4, 7, 64])
def test_largest_distance_is_that_of_all_pairs(seed, block):
    # Two far clusters of unlike size and points on a line: the farthest pair need not hold the point farthest out.
    random = np.random.RandomState(seed)
    points = np.concatenate(
        [random.randn(30, 2, 2), random.randn(5, 2, 2) + 3, random.randn(12, 1, 1) * np.ones((2, 2))]
    )
    points = torch.from_numpy(points)
    assert largest_distance(points, block) == pytest.approx(brute_force(points), rel=1e-13)


def test_a_far_origin_and_integers_lose_no_digits():
    points = torch.randint(0, 256, (50, 3, 2, 2), dtype=torch.uint8)
    truth = brute_force(points)
    assert largest_distance(points, 16) == pytest.approx(truth, rel=1e-14)
    assert largest_distance(points.double() + 2**33, 16) == pytest.approx(truth, rel=1e-9)


def test_memory_does_not_grow_with_the_data():
    data = torch.randn(3000, 30)
    with Largest() as largest:
        largest_distance(data, block=50)
    # Three thousand radii, or fifty points of thirty numbers, in float64: never the data, never all distances.
    assert largest.bytes <= 8 * max(3000, 50 * 30, 50 * 50) < data.untyped_storage().nbytes()


def test_most_pairs_are_skipped(monkeypatch):
    looks = []
    monkeypatch.setattr("diffusion_lab.process.techniques.farthest", lambda a, b: looks.append(1) or 1.9)
    line = torch.linspace(-1, 1, 1000)[:, None]
    largest_distance(line, block=10)
    # Block k holds the radii below 1 - k / 100: two blocks k, l reach farther than 1.9 only where k + l < 10.
    assert len(looks) == sum(k <= m < 10 - k for k in range(100) for m in range(100))


@pytest.mark.parametrize(
    "data, block, message",
    [
        (torch.zeros(1, 4), 8, "at least two points"),
        (torch.zeros(9), 8, r"shape \(9,\)"),
        (torch.zeros(9, 4), 0, "block=0"),
        (torch.tensor([[0.0], [torch.nan], [1.0]]), 8, "contain NaN"),
    ],
)
def test_data_without_a_distance_are_refused(data, block, message):
    with pytest.raises(ValueError, match=message):
        largest_distance(data, block)


# --------------------------------------------------------------------------- technique 2


def test_overlap_and_levels_at_the_published_settings(published):
    dimensions = published["D"]
    assert overlap(published["gamma"], dimensions) == pytest.approx(published["overlap_at_published_L"], rel=1e-12)
    assert ratio(dimensions) == pytest.approx(published["gamma_half"], rel=1e-11)
    levels = number_of_levels(published["sigmaL"], published["sigma1"], dimensions)
    assert levels == pytest.approx(published["L_half"], rel=1e-9)


def test_the_published_numbers_of_levels_are_those_of_another_target(published):
    levels = number_of_levels(published["sigmaL"], published["sigma1"], published["D"], target=0.567)
    assert levels == pytest.approx(published["L"], rel=2e-3)


@pytest.mark.parametrize("dimensions", [5, 64, 10**6])
@pytest.mark.parametrize("target", [0.01, 0.5, 0.99])
def test_ratio_solves_its_equation(dimensions, target):
    gamma = ratio(dimensions, target)
    assert gamma > 1
    shift, normal = math.sqrt(2 * dimensions) * (gamma - 1), torch.distributions.Normal(0.0, 1.0)
    edges = torch.tensor([shift - 3 * gamma, shift + 3 * gamma], dtype=torch.float64)
    assert normal.cdf(edges).diff().item() == pytest.approx(target, rel=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ratio(4), "dimensions=4: .*only in 5 or more dimensions"),
        (lambda: ratio(64, 0.0), "target=0.0: .*between 0 and 0.997"),
        (lambda: ratio(64, 0.998), "target=0.998"),
        (lambda: number_of_levels(1.0, 1.0, 64), "0 < sigma_min < sigma_max"),
        (lambda: number_of_levels(0.0, 1.0, 64), "sigma_min=0.0"),
        (lambda: step_size(1.0, 5), "gamma=1.0.*need gamma > 1"),
        (lambda: step_size(1.1, 0), "steps=0"),
        (lambda: variance_ratio(1e-5, 1.1, 5, 0.0), "sigma_min=0.0"),
        (lambda: variance_ratio(2e-4, 1.1, 5, 0.01), "between 0 and 2 sigma_min"),
    ],
)
def test_settings_without_a_solution_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --------------------------------------------------------------------------- technique 4


def test_variance_ratio_and_step_size_at_the_published_settings(published):
    form = {"gamma": published["gamma"], "steps": published["T"], "sigma_min": published["sigmaL"]}
    assert variance_ratio(published["eps"], **form) == pytest.approx(published["ratio_at_published_eps"], rel=1e-12)
    best = step_size(**form)
    # The recorded one is the best of 5,000 numbers a decade; ours is the best of all.
    grid = np.geomspace(1e-7, 1e-5, 10_001)
    nearest = grid[np.argmin([variance_ratio(epsilon, **form) for epsilon in grid])]
    assert nearest == pytest.approx(published["best_eps"], rel=1e-12)
    assert best == pytest.approx(published["best_eps"], rel=math.log(10) / 5000 / 2)
    assert variance_ratio(best, **form) == pytest.approx(published["ratio_at_best_eps"], rel=1e-9)
    assert variance_ratio(best, **form) < published["ratio_at_best_eps"]


def test_variance_ratio_is_that_of_simulated_langevin_steps():
    sigma_min, gamma, steps, epsilon = 0.02, 1.3, 7, 3e-5
    sigma = 0.4
    variance, step = (gamma * sigma) ** 2, epsilon * sigma**2 / sigma_min**2
    for _ in range(steps):  # x + step * score + sqrt(2 step) z, with the score -x / sigma^2 of a single point
        variance = (1 - step / sigma**2) ** 2 * variance + 2 * step
    assert variance_ratio(epsilon, gamma, steps, sigma_min) == pytest.approx(variance / sigma**2, rel=1e-12)


@pytest.mark.parametrize("gamma", [1.0001, 1.04, 1.7, 30.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_step_size_minimises_the_variance_ratio(gamma, steps):
    best = step_size(gamma, steps, sigma_min=1.0)
    near, far = best * (1 + np.array([-1e-3, 1e-3])), np.geomspace(1e-8, 1.99, 4001)
    least = variance_ratio(best, gamma, steps, 1.0)
    assert all(variance_ratio(q, gamma, steps, 1.0) > least for q in near if q < 2)
    assert all(variance_ratio(q, gamma, steps, 1.0) >= least * (1 - 1e-14) for q in far)
    if steps == 1:  # (1 - q)^2 gamma^2 + 2 q
        assert best == pytest.approx(1 - gamma**-2, rel=1e-9)


# --------------------------------------------------------------------------- all of them


def test_advice_is_consistent():
    points = torch.rand(60, 3, 4, 4)
    advice = advise(points, sigma_min=0.02, steps=3, block=7)
    assert advice.sigma_max == pytest.approx(brute_force(points), rel=1e-13)
    assert (advice.sigma_min, advice.steps) == (0.02, 3)
    ladder = np.geomspace(advice.sigma_max, 0.02, advice.levels)
    np.testing.assert_allclose(ladder[:-1] / ladder[1:], advice.gamma, rtol=1e-12)
    fewer = (advice.sigma_max / 0.02) ** (1 / (advice.levels - 2))
    assert overlap(fewer, 48) < 0.5 <= overlap(advice.gamma, 48)
    assert advice.step_size == step_size(advice.gamma, 3, 0.02)
    with pytest.raises(dataclasses.FrozenInstanceError):
        advice.levels = 3
