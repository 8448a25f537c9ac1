"""Moments and the Fréchet distance against closed forms, recorded values, and singular values of factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_lab.metric import Moments, frechet_at_infinity, frechet_distance, moments


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


class TestFrechet:
    @pytest.fixture
    def stored(self, recorded):
        return recorded("frechet")

    @pytest.mark.parametrize(
        ("case", "second"), [("commuting", "commuting"), ("general", "general"), ("singular", "commuting")]
    )
    def test_recorded_gaussians(self, stored, case, second):
        a = Moments(stored["commuting.mu1"], stored[f"{case}.s1"], 100)
        b = Moments(stored["commuting.mu2"], stored[f"{second}.s2"], 100)
        expected = stored[f"{case}.fid"].item()
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)

    def test_features_scored_by_the_reference_packages(self, stored):
        value = frechet_distance(moments(stored["features.x"]), moments(stored["features.y"]))
        for package in ("pytorch_fid 0.3.0", "torch_fidelity", "torchmetrics _compute_fid"):
            assert value == pytest.approx(stored.meta["notes"]["packages"][package], abs=1e-6)

    def test_commuting_covariances_in_closed_form(self):
        # Diagonal: sum of (m_a - m_b)^2 + (s_a - s_b)^2, here with one direction of no variance in each.
        s_a, s_b = torch.tensor([1.0, 2.0, 0.0, 3.0]).double(), torch.tensor([2.0, 0.0, 1e-3, 3.0]).double()
        m_a, m_b = torch.zeros(4).double(), torch.tensor([1.0, 0.0, 0.0, -2.0]).double()
        rotation = torch.linalg.qr(normal(4, 4)).Q
        a = Moments(rotation @ m_a, rotation * s_a**2 @ rotation.T, 10)
        b = Moments(rotation @ m_b, rotation * s_b**2 @ rotation.T, 10)
        expected = ((m_a - m_b) ** 2 + (s_a - s_b) ** 2).sum().item()
        assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)

    def test_fewer_samples_than_dimensions(self):
        # tr (S_a^1/2 S_b S_a^1/2)^1/2 is the nuclear norm of X_a X_b^T / n, with no D x D matrix at all.
        x, y = normal(40, 100, seed=1), 2 * normal(30, 100, seed=2) + 0.5
        centred_x, centred_y = x - x.mean(0), y - y.mean(0)
        overlap = torch.linalg.matrix_norm(centred_x @ centred_y.T / math.sqrt(39 * 29), "nuc")
        expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * overlap
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected.item(), rel=1e-12)

    def test_equal_sets_and_collapsed_sets(self):
        for seed in range(20):
            x = normal(50, 20, seed=seed)
            assert 0 <= frechet_distance(moments(x), moments(x)) < 1e-12
        point = torch.ones(50, 20, dtype=torch.float64)
        expected = (x.mean(0) - 1).square().sum().item() + x.var(0).sum().item()
        assert frechet_distance(moments(x), moments(point)) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(moments(point), moments(point)) == 0

    def test_refusals(self):
        with pytest.raises(ValueError, match="4 and 5 dimensions"):
            frechet_distance(moments(normal(9, 4)), moments(normal(9, 5)))


def columns(variances: torch.Tensor, seed: int, mixing: float) -> torch.Tensor:
    """F (D, D) with covariance F F^T: axes of these variances, mixed a little or wholly."""
    size = len(variances)
    return (torch.eye(size).double() + mixing * normal(size, size, seed=seed) / size**0.5) * variances.sqrt()


def nuclear(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.linalg.svdvals(a.T @ b).sum().item()


class TestAllWaysToTheSameDistance:
    """Rows or covariances, of full rank or not: the singular values of the true factors say what is right."""

    sizes = {"few": 12, "many": 90, "flat": 20}

    def set(self, kind: str, seed: int) -> tuple[Moments, torch.Tensor]:
        """Moments in one of their forms, and centred rows / sqrt(N - 1) as columns."""
        dimensions, count = 30, self.sizes[kind]
        x = normal(count, dimensions, seed=seed)
        if kind == "flat":
            x = torch.cat([x, normal(60, 20, seed=seed + 9) @ x])  # 80 samples in a subspace of 20
        factor = (x - x.mean(0)).T / math.sqrt(len(x) - 1)
        return moments(x), factor

    @pytest.mark.parametrize("first", ["few", "many", "flat"])
    @pytest.mark.parametrize("second", ["few", "many", "flat"])
    @pytest.mark.parametrize("forgets", [False, True])
    def test_against_singular_values(self, first, second, forgets):
        (a, factor_a), (b, factor_b) = self.set(first, 1), self.set(second, 2)
        assert (a.rows is None) == (first != "few") and a.triangular == (first == "many")
        if forgets:  # as moments that were read from a file
            a, b = (Moments(m.mean, m.covariance) for m in (a, b))
        difference = (a.mean - b.mean).square().sum()
        expected = difference + factor_a.square().sum() + factor_b.square().sum() - 2 * nuclear(factor_a, factor_b)
        assert frechet_distance(a, b) == pytest.approx(expected.item(), abs=1e-9)
        assert frechet_distance(b, a) == pytest.approx(expected.item(), abs=1e-9)

    @pytest.mark.parametrize("order", ["falling", "rising", "mixed"])
    @pytest.mark.parametrize("mixing", [0.01, 1.0])
    @pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
    def test_small_variances_are_not_lost_in_rounding(self, order, mixing, condition):
        variances = 10 * torch.logspace(0, -math.log10(condition), 200).double()
        places = {"falling": range(200), "rising": range(199, -1, -1), "mixed": torch.randperm(200, generator=seeded())}
        variances = variances[torch.as_tensor(list(places[order]))]
        f, g = columns(variances, 1, mixing), columns(1.5 * variances, 2, mixing)
        zero = torch.zeros(200).double()
        expected = (f.square().sum() + g.square().sum()).item() - 2 * nuclear(f, g)
        found = frechet_distance(Moments(zero, f @ f.T), Moments(zero, g @ g.T))
        assert found == pytest.approx(expected, abs=1e-7)
        half = f[:, ::2]
        expected = (half.square().sum() + g.square().sum()).item() - 2 * nuclear(half, g)
        rows = Moments(zero, rows=half.T.contiguous())
        assert frechet_distance(rows, Moments(zero, g @ g.T)) == pytest.approx(expected, abs=1e-7)
        assert frechet_distance(Moments(zero, half @ half.T), Moments(zero, g @ g.T)) == pytest.approx(
            expected, abs=1e-7
        )

    @pytest.mark.parametrize("counts", [(12, 12), (9, 12), (12, 9), (12, 90), (90, 12), (90, 80)])
    def test_ordinary_features_take_the_fast_way(self, monkeypatch, counts):
        sets = [normal(count, 30, seed=count) for count in counts]
        f, g = ((x - x.mean(0)).T / math.sqrt(len(x) - 1) for x in sets)
        shift = (sets[0].mean(0) - sets[1].mean(0)).square().sum()
        expected = (shift + f.square().sum() + g.square().sum()).item() - 2 * nuclear(f, g)
        monkeypatch.setattr(torch.linalg, "svdvals", lambda _: pytest.fail("squares were not trusted"))
        monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("a root was not found"))
        assert frechet_distance(*map(moments, sets)) == pytest.approx(expected, abs=1e-10)

    def test_one_direction_of_no_variance(self):
        # Half of these covariances have a Cholesky root, thanks to rounding: its last row is noise.
        other = columns(torch.ones(20).double(), 1, 1.0)
        for seed in range(20):
            flat = torch.linalg.qr(normal(20, 20, seed=seed)).Q[:, 1:]
            expected = 19 + (other.square().sum() - 2 * nuclear(flat, other)).item()
            a, b = (Moments(torch.zeros(20).double(), f @ f.T) for f in (flat, other))
            assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)

    def test_supports_that_do_not_meet(self):
        a, b = torch.diag(torch.tensor([4.0, 9.0, 0.0, 0.0])).double(), torch.diag(torch.tensor([0.0, 0.0, 1.0, 16.0]))
        zero = torch.zeros(4).double()
        assert frechet_distance(Moments(zero, a), Moments(zero, b.double())) == pytest.approx(30, abs=1e-12)

    def test_equals_the_reference_packages_at_full_rank(self):
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torchmetrics.image.fid import _compute_fid

        x, y = normal(500, 64, seed=1), 1.3 * normal(400, 64, seed=2) + 0.2
        found = frechet_distance(moments(x), moments(y))
        theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)
        assert found == pytest.approx(theirs["frechet_inception_distance"], abs=1e-9)
        assert found == pytest.approx(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item(), abs=1e-9)

    def test_a_reference_is_decomposed_once(self, monkeypatch):
        calls = []
        cholesky = torch.linalg.cholesky_ex
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda x: calls.append(1) or cholesky(x))
        reference = moments(normal(50, 10))
        for seed in (1, 2, 3):
            frechet_distance(moments(normal(40, 10, seed=seed)), reference)
        assert len(calls) == 1  # the other side needs no root

    def test_few_samples_need_no_square_matrix(self):
        a, b = moments(normal(20, 100)), moments(normal(20, 100, seed=1))
        frechet_distance(a, b)
        assert "covariance" not in vars(a) and a.rows.shape == (19, 100)
        torch.testing.assert_close(a.covariance, normal(20, 100).T.cov(), rtol=0, atol=1e-14)


class TestInfinity:
    """Samples of std 1.1 s and mean 0.1 against N(0, s^2): 0.01 D + 0.01 sum s^2 in truth."""

    variances = torch.linspace(1, 3, 16).double()
    truth = 0.01 * 16 + 0.01 * variances.sum().item()
    reference = Moments(torch.zeros(16).double(), torch.diag(variances))

    def samples(self, seed: int, count: int = 1000) -> torch.Tensor:
        return 1.1 * normal(count, 16, seed=seed) * self.variances.sqrt() + 0.1

    def test_the_bias_of_finite_samples_is_removed(self):
        results = [frechet_at_infinity(self.samples(seed), self.reference) for seed in range(20)]
        plain = np.mean([result.distances[-1] for result in results]) - self.truth
        bias = np.mean([result.value for result in results]) - self.truth
        assert plain > 0.15
        error = np.std([result.value for result in results]) / math.sqrt(20)
        assert abs(bias) < 3 * error < 0.06

    def test_what_is_fitted(self):
        rows = self.samples(0, 500)
        result = frechet_at_infinity(rows, self.reference, points=3, smallest=100, seed=5)
        assert result.counts == (100, 300, 500)
        order = np.random.Generator(np.random.PCG64(5)).permutation(500)
        for count, distance in zip(result.counts, result.distances):
            expected = frechet_distance(moments(rows[order[:count]]), self.reference)
            assert distance == pytest.approx(expected, abs=1e-10)
        design = np.stack([np.ones(3), 1 / np.array(result.counts)], 1)
        assert result.value == pytest.approx(np.linalg.lstsq(design, result.distances)[0][0], rel=1e-9)
        assert frechet_at_infinity(rows, self.reference).counts[0] == 64  # 4 D
        assert frechet_at_infinity(rows[:100], self.reference).counts[0] == 50  # N / 2
        assert frechet_at_infinity(self.samples(0, 900), self.reference).counts[0] == 90  # N / 10

    def test_refusals(self):
        rows = self.samples(0, 20)
        for points, smallest in ((1, 5), (3, 1), (3, 19), (30, 2)):
            with pytest.raises(ValueError, match="no line can be fitted"):
                frechet_at_infinity(rows, self.reference, points, smallest)
