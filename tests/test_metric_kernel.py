"""Kernel distance and Inception Score against torch-fidelity on the same numbers, closed forms and sums by hand."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest
import torch

from diffusion_lab.metric import inception_score, kernel_distance
from diffusion_lab.metric.kernel import finite_sets_variance

metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
metric_isc = pytest.importorskip("torch_fidelity.metric_isc")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestKernelDistance:
    @pytest.mark.parametrize("seed", [2020, 7])
    def test_equals_torch_fidelity_on_the_same_features(self, seed):
        x, y = normal(300, 40, seed=1), 1.1 * normal(260, 40, seed=2) + 0.1
        theirs = metric_kid.kid_features_to_metric(
            x, y, kid_subsets=12, kid_subset_size=150, rng_seed=seed, verbose=False
        )
        found = kernel_distance(x, y, subsets=12, subset_size=150, seed=seed)
        assert found.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
        assert found.standard_deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
        assert (found.subsets, found.subset_size) == (12, 150)

    def test_recorded_value(self, recorded):
        stored = recorded("frechet")
        x, y = stored["features.x"], stored["features.y"]
        expected = stored.meta["notes"]["packages"]["own KID unbiased"]
        found = kernel_distance(x, y[:300], subsets=3, subset_size=300)
        assert found.value == pytest.approx(expected, abs=1e-9)

    def test_by_hand(self):
        # k = (x.y / 1 + 1)^3 of x = 1, 2 and y = 0, 3.
        x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
        expected = 2 * 27 / 2 + 2 * 1 / 2 - 2 * (1 + 64 + 1 + 343) / 4
        found = kernel_distance(x, y, subsets=4, subset_size=2)
        assert found.value == pytest.approx(expected, rel=1e-14) and found.standard_deviation == 0

    def test_moments_of_gaussians(self):
        # Between N(0, 1) and N(m, 1): 3 m^2 + 3 (m^2)^2 + (m^3 + 3 m)^2 by the moments up to the third.
        m = 0.5
        x = torch.special.ndtri((torch.arange(2000).double() + 0.5) / 2000)[:, None]
        expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
        assert kernel_distance(x, x + m, subset_size=2000).value == pytest.approx(expected, rel=0.02)

    def test_is_unbiased_at_ten_samples(self):
        x, y = normal(200, 1, seed=1), normal(150, 1, seed=2) + 0.5
        few = kernel_distance(x, y, subsets=1500, subset_size=10)
        kernels = [(a @ b.T + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
        expected = (sum(within) - 2 * kernels[2].mean()).item()
        assert abs(few.value - expected) < 3.5 * few.standard_deviation / math.sqrt(1500) < 0.5 * expected

    @pytest.mark.parametrize("count, other, subset", [(400, 100, 100), (100, 400, 50), (150, 150, 150)])
    @pytest.mark.parametrize("shift", [0.0, 0.4])
    def test_its_error_covers_the_distance_of_the_distributions(self, count, other, subset, shift):
        """Of N(0, I) and N(m, I) in D dimensions, |m|^2 = q, the moments up to the third give the distance."""
        d, q = 8, 8 * shift**2
        true = 3 * q / d + 3 * q**2 / d**2 + (q**3 + 6 * q**2 + 3 * q * d + 6 * q) / d**3
        found = []
        for seed in range(150):
            x, y = normal(count, d, seed=2 * seed), normal(other, d, seed=2 * seed + 1) + shift
            found.append(kernel_distance(x, y, subsets=10, subset_size=subset))
        covered = np.mean([abs(one.value - true) < 2 * one.standard_error for one in found])
        ratio = np.mean([one.standard_error for one in found]) / np.std([one.value for one in found])
        assert covered >= 0.9 and 0.8 < ratio < (2.0 if shift == 0 else 1.25), (covered, ratio)

    def test_its_error_falls_with_the_root_of_the_rows_also_beyond_those_it_looks_at(self, monkeypatch):
        monkeypatch.setattr("diffusion_lab.metric.kernel._ROWS", 300)
        x, y = normal(3000, 3, seed=1), normal(3000, 3, seed=2) + 0.3
        assert finite_sets_variance(x[:300], y[:300]) == pytest.approx(10 * finite_sets_variance(x, y), rel=1e-9)

    def test_rows_of_a_kernel_matrix_come_in_parts(self, monkeypatch):
        x, y = normal(50, 4, seed=1), normal(50, 4, seed=2)
        whole = kernel_distance(x, y, subsets=2, subset_size=45)
        monkeypatch.setattr("diffusion_lab.metric.kernel._SIDE", 7)
        assert kernel_distance(x, y, subsets=2, subset_size=45).value == pytest.approx(whole.value, rel=1e-10)

    def test_callers_random_numbers_stay(self):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        kernel_distance(normal(9, 2), normal(8, 2), 2, 5)
        inception_score(normal(20, 3))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002

    def test_refusals(self):
        x = normal(20, 3)
        with pytest.raises(ValueError, match="set subset_size to at most 10"):
            kernel_distance(x, x[:10], subset_size=11)
        with pytest.raises(ValueError, match="at least 2 rows"):
            kernel_distance(x, x, subset_size=1)
        with pytest.raises(ValueError, match="must be"):
            kernel_distance(x, x[:, :2], subset_size=5)
        with pytest.raises(ValueError, match="NaN"):
            kernel_distance(x, x / 0, subset_size=5)


class TestInceptionScore:
    @pytest.mark.parametrize(("count", "splits"), [(200, 10), (203, 10), (57, 1)])
    @pytest.mark.parametrize("block", [4096, 6])
    def test_equals_torch_fidelity_on_the_same_logits(self, monkeypatch, count, splits, block):
        monkeypatch.setattr(import_module("diffusion_lab.metric.inception_score"), "_BLOCK", block)
        logits = 3 * normal(count, 12)
        for seed, shuffle in ((2020, True), (3, True), (None, False)):
            theirs = metric_isc.isc_features_to_metric(logits, splits, shuffle, seed)
            found = inception_score(logits, splits=splits, seed=seed)
            assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
            assert found.standard_deviation == pytest.approx(theirs["inception_score_std"], rel=1e-10, abs=1e-14)

    def test_recorded_value(self, recorded):
        stored = recorded("frechet")
        found = inception_score(stored["inception.p"].log(), splits=1)
        assert found.value == pytest.approx(stored["inception.score"].item(), rel=1e-12)

    def test_certain_and_ignorant_classifiers(self):
        # Certain of one of K classes, all equally frequent: K. The same answer for all: 1.
        certain = 2000 * torch.eye(5).double().repeat(8, 1)
        assert inception_score(certain, splits=1).value == pytest.approx(5, rel=1e-12)
        assert inception_score(certain, splits=8, seed=None).standard_deviation == pytest.approx(0, abs=1e-12)
        assert inception_score(normal(1, 5).repeat(40, 1)).value == pytest.approx(1, rel=1e-12)
        half = torch.tensor([[2000.0, 0.0, -2000.0], [0.0, 2000.0, -2000.0]])
        assert inception_score(half, splits=1).value == pytest.approx(2, rel=1e-12)

    def test_logits_are_made_of_features(self):
        features, weights = normal(50, 7), normal(7, 4, seed=1)
        direct = inception_score(features @ weights, splits=5)
        assert inception_score(features, lambda x: x @ weights, splits=5).value == pytest.approx(
            direct.value, rel=1e-12
        )

    def test_refusals(self):
        with pytest.raises(ValueError, match="set splits to 1..9"):
            inception_score(normal(9, 3))
        with pytest.raises(ValueError, match="NaN"):
            inception_score(normal(10, 3), lambda x: x / 0)
