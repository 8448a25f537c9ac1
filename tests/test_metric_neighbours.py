"""Precision, recall, density and coverage against torch-fidelity, pairs counted one by one, and expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_lab.metric import NeighbourScores, neighbour_scores

metric_prc = pytest.importorskip("torch_fidelity.metric_prc")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(samples: torch.Tensor, reference: torch.Tensor, k: int, m: int) -> NeighbourScores:
    """The definitions, pair after pair, with distances of differences."""

    def radii(rows, rank):
        return [sorted((row - other).norm().item() for other in rows)[rank] for row in rows]

    near, wide, own = radii(reference, k), radii(reference, m), radii(samples, k)
    between = [[(x - r).norm().item() for r in reference] for x in samples]
    count, size = len(samples), len(reference)
    return NeighbourScores(
        precision=sum(any(between[i][j] <= near[j] for j in range(size)) for i in range(count)) / count,
        recall=sum(any(between[i][j] <= own[i] for i in range(count)) for j in range(size)) / size,
        density=sum(between[i][j] <= wide[j] for i in range(count) for j in range(size)) / (m * count),
        coverage=sum(any(between[i][j] <= wide[j] for i in range(count)) for j in range(size)) / size,
    )


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("side", [1024, 50])
def test_precision_and_recall_equal_torch_fidelity(monkeypatch, k, side):
    monkeypatch.setattr("diffusion_lab.metric.neighbours._SIDE", side)
    samples, reference = 1.2 * normal(330, 8, seed=1) + 0.5, normal(410, 8, seed=2)
    theirs = metric_prc.prc_features_to_metric(samples, reference, prc_neighborhood=k, verbose=False)
    found = neighbour_scores(samples, reference, k)
    assert 0.1 < found.precision < found.recall - 0.1 < 0.85
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-7)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-7)


@pytest.mark.parametrize(("k", "m"), [(3, 5), (2, 1)])
@pytest.mark.parametrize("side", [1024, 4])
def test_all_four_by_their_definitions(monkeypatch, k, m, side):
    monkeypatch.setattr("diffusion_lab.metric.neighbours._SIDE", side)
    samples, reference = normal(23, 2, seed=1) + 1, normal(31, 2, seed=2)
    expected = one_by_one(samples, reference, k, m)
    assert len(set(vars(expected).values())) == 4 and 0 < expected.precision < 1 and 0 < expected.coverage < 1
    found = neighbour_scores(samples, reference, k, m)
    assert vars(found) == pytest.approx(vars(expected), rel=1e-14)


def test_expectations_for_equal_distributions():
    # Naeem et al. 2020, Section 3.3: whatever the distribution. Uneven counts tell one from the other.
    count, size, k = 30, 20, 5
    scores = [neighbour_scores(normal(count, 3, seed=s), normal(size, 3, seed=10**4 + s)) for s in range(400)]
    coverage = 1 - math.prod((size - i) / (count + size - i) for i in range(1, k + 1))
    for name, expected in (("density", 1.0), ("coverage", coverage)):
        values = [getattr(score, name) for score in scores]
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 3.5 * error < 0.04


def test_equal_sets_and_sets_far_apart():
    x = normal(40, 5)
    same = neighbour_scores(x, x.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert neighbour_scores(x, x + 100) == NeighbourScores(0, 0, 0, 0)


@pytest.mark.parametrize("side", [1024, 7])
def test_repeated_rows_have_neighbourhoods_of_one_point(monkeypatch, side):
    # Twenty places, each six times: all radii are zero, and each sample lies in the six balls of its place.
    monkeypatch.setattr("diffusion_lab.metric.neighbours._SIDE", side)
    places = 100 + normal(20, 64) / 3
    reference = places.repeat(6, 1)
    samples = torch.cat([places[:5].repeat(6, 1), places[5:] + 1e-4])
    found = neighbour_scores(samples, reference)
    assert found.precision == 30 / 45 and found.coverage == 5 / 20
    assert found.density == pytest.approx(30 * 6 / (5 * 45))


@pytest.mark.parametrize("side", [1024, 7])
def test_rows_at_the_very_edge_are_inside(monkeypatch, side):
    # Pairs x, x + e far apart, in numbers without rounding; x - e lies as far from x as x + e, x - 2 e does not.
    monkeypatch.setattr("diffusion_lab.metric.neighbours._SIDE", side)
    x, e = (300 * normal(25, 64)).round() / 8, normal(64, seed=1).mul(8).round() / 8
    reference = torch.cat([x, x + e])
    for samples, share in ((x - e, 1), (x - 2 * e, 0), (torch.cat([x - e, x - 2 * e, x - 3 * e]), 1 / 3)):
        found = neighbour_scores(samples, reference, 1, 1)
        assert found.precision == found.density == share and found.coverage == min(1, 3 * share) / 2


def test_refusals():
    x = normal(6, 2)
    assert neighbour_scores(x, x + 0.1).precision > 0
    with pytest.raises(ValueError, match="5 reference rows have no 5-th neighbour: more than 5 are needed"):
        neighbour_scores(x, x[:5])
    with pytest.raises(ValueError, match="3 samples have no 3-th neighbour"):
        neighbour_scores(x[:3], x)
    with pytest.raises(ValueError, match="must be"):
        neighbour_scores(x, x[:, :1])
    with pytest.raises(ValueError, match="at least 1 neighbour"):
        neighbour_scores(x, x, 0)
    for bad in ((x / 0, x), (x, x / 0)):
        with pytest.raises(ValueError, match="NaN"):
            neighbour_scores(*bad)
