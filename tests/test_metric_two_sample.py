"""Distances between point sets against closed forms and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_lab.metric import energy_distance, sliced_wasserstein


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


class TestTwoSample:
    def test_sliced_wasserstein_of_a_shift_is_exact(self):
        x, shift = normal(500, 2), torch.tensor([1.5, -0.8]).double()
        expected = shift.norm().item() / math.sqrt(2)
        for projections in (2, 64):
            assert sliced_wasserstein(x, x + shift, projections) == pytest.approx(expected, rel=1e-12)
        order = torch.randperm(500, generator=seeded())
        assert sliced_wasserstein(x, x[order]) < 1e-12

    def test_sliced_wasserstein_of_gaussians(self):
        # Along every direction N(0, 1) against N(theta d, 4): W2^2 = (theta d)^2 + 1, on average |d|^2 / 2 + 1.
        shift = torch.tensor([1.0, 2.0]).double()
        x, y = normal(20000, 2, seed=1), 2 * normal(20000, 2, seed=2) + shift
        assert sliced_wasserstein(x, y) ** 2 == pytest.approx(2.5 + 1, rel=0.03)

    def test_one_dimension_by_hand_with_unequal_counts(self):
        # Quantiles of {0, 3}: 0 then 3; of {0, 1, 5}: 0 to 1/3, 1 to 2/3, 5: squared gaps 0, 1 | 4, 4.
        x, y = torch.tensor([[3.0], [0.0]]), torch.tensor([[5.0], [0.0], [1.0]])
        expected = math.sqrt((0 * 2 + 1 * 1 + 4 * 1 + 4 * 2) / 6)
        assert sliced_wasserstein(x, y, 3) == pytest.approx(expected, rel=1e-12)

    def test_directions_are_uniform_and_drawn_from_the_generator(self):
        x, y = normal(50, 2), normal(60, 2, seed=1) * torch.tensor([3.0, 0.2])
        before = torch.get_rng_state()
        assert sliced_wasserstein(x, y, 3) == sliced_wasserstein(x, y, 3)
        assert sliced_wasserstein(x, y, 3, seeded(1)) == sliced_wasserstein(x, y, 3, seeded(1))
        assert sliced_wasserstein(x, y, 3, seeded(1)) != sliced_wasserstein(x, y, 3, seeded(2))
        assert torch.equal(torch.get_rng_state(), before)
        # Two points at distance 1 in 3-D: W2^2 along one direction is cos^2, whose mean over the sphere is 1/3.
        one = torch.tensor([[0.0, 0.0, 1.0]])
        draws = [sliced_wasserstein(0 * one, one, 1, seeded(k)) ** 2 for k in range(500)]
        assert np.mean(draws) == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / 500))

    def test_energy_distance_by_hand(self):
        x, y = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        # 2 (5 + sqrt 13) / 2 - mean of (0, 2, 2, 0) - 0
        assert energy_distance(x, y) == pytest.approx(5 + math.sqrt(13) - 1, rel=1e-12)
        assert energy_distance(x, x) == 0

    def test_energy_distance_of_gaussians(self):
        # X - X' ~ N(0, 2 I): E|X - X'| = sqrt pi; X - Y ~ N(d, 2 I): a Rice mean. Self-pairs add sqrt(pi) (1/N + 1/M).
        n, m, shift = 3000, 2500, 1.3
        x, y = normal(n, 2, seed=1), normal(m, 2, seed=2) + torch.tensor([shift, 0.0])
        z = torch.tensor(shift**2 / 4).double()
        bessel = (1 + z) * torch.special.i0(z / 2) + z * torch.special.i1(z / 2)
        rice = math.sqrt(math.pi) * (torch.exp(-z / 2) * bessel).item()
        expected = 2 * rice - 2 * math.sqrt(math.pi) + math.sqrt(math.pi) * (1 / n + 1 / m)
        assert energy_distance(x, y) == pytest.approx(expected, rel=0.08)
        nothing = energy_distance(x, normal(m, 2, seed=3))
        assert nothing == pytest.approx(math.sqrt(math.pi) * (1 / n + 1 / m), rel=0.8)

    def test_blocks_do_not_change_the_energy_distance(self):
        # Far from the origin, where distances through |x|^2 + |y|^2 - 2 x.y keep few digits.
        x, y = normal(2100, 2, seed=1) + 1e5, normal(1030, 2, seed=2) + 1e5

        def mean(a, b):
            return (a[:, None] - b[None]).norm(dim=-1).mean().item()

        assert energy_distance(x, y) == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), abs=1e-9)

    @pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance])
    def test_refusals(self, distance):
        good = torch.zeros(3, 2)
        for bad in (torch.zeros(3, 3), torch.zeros(0, 2), torch.zeros(3)):
            with pytest.raises(ValueError, match="must be"):
                distance(good, bad)
        with pytest.raises(ValueError, match="NaN"):
            distance(good, torch.full((3, 2), math.nan))

    def test_projections_are_counted_from_one(self):
        with pytest.raises(ValueError, match="at least 1"):
            sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), 0)
