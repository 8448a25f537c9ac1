"""The implementations for the Fréchet distance compute one number, and the features they get are what the benchmark says."""

from __future__ import annotations

import pytest
import torch

from diffusion_lab.bench import frechet
from diffusion_lab.bench.benchmark import Setting, run


@pytest.fixture(scope="module")
def results():
    return [
        run(benchmark, Setting(rounds=1, small=True)) for benchmark in frechet.benchmarks(Setting(rounds=1, small=True))
    ]


def test_all_take_the_same_distance(results):
    for result in results:
        errors = [float(part.split()[-1]) for part in result.note.split(": ")[1].split(", ")]
        assert len(errors) == len(result.measured) - 1 and max(errors) < 1e-6, result


def test_everybody_is_there(results):
    from_features, few, mixed, many = (set(result.measured) for result in results)
    given = {"ours", "ours (new reference)", "torch-fidelity", "torchmetrics"}
    assert from_features == {"ours", "torch-fidelity"}
    assert few == mixed == given and many == given | {"SciPy's sqrtm"}
    assert not any(result.left_out for result in results)


def test_a_wrong_distance_is_told():
    note = frechet.agreement({"ours": 2.0, "other": 2.0, "third": 2.2})
    assert note == "relative difference to ours: other 0e+00, third 1e-01"


def test_variances_of_the_features_fall():
    x = frechet.features(20_000, 16, 0)
    expected = 1 / torch.arange(1, 17)
    found = torch.linalg.eigvalsh(x.T.cov()).flip(0)
    torch.testing.assert_close(found, expected.float(), rtol=0.05, atol=0)
    assert x.T.cov().diag().max() < 0.6  # no axis is a direction of its own
    assert not torch.equal(x, frechet.features(20_000, 16, 1))


def test_a_fresh_side_has_nothing_decomposed():
    for count in (10, 40):
        x = frechet.moments(frechet.features(count, 16, 0))
        _ = x.factor
        assert not {"factor", "_root"} & set(vars(frechet.fresh(x))) and (frechet.fresh(x).rows is None) == (count > 16)
