"""All implementations of the likelihood's benchmark compute one number, ours with the fewest evaluations."""

from __future__ import annotations

import re

import pytest
import torch

from diffusion_lab.bench import likelihood
from diffusion_lab.bench.benchmark import Setting, run


@pytest.fixture(scope="module")
def result():
    pytest.importorskip("torchdiffeq")
    setting = Setting(rounds=1, small=True)
    return run(next(likelihood.benchmarks(setting)), setting)


def test_everybody_agrees_with_the_reference(result):
    counts = re.findall(r"  (\S.*): (\d+) \+ (\d+), (\S+)", result.note)
    counts, loose = counts[:-4], counts[-4:]
    assert [name for name, *_ in counts] == list(result.measured)[:-1]
    assert [name for name, *_ in loose] == [
        f"tolerance {each:g}, {name}" for each in (1e-2, 1e-3) for name in ("ours", "torchdiffeq")
    ]
    for (_, forwards, _, error), (_, more, _, larger) in zip(loose[::2], loose[1::2], strict=True):
        assert int(forwards) < int(more) and float(error) < float(larger)
    for name, forwards, backwards, error in counts:
        assert float(error) <= 5e-3, name  # printed with one digit
    (_, forwards, backwards, error), *others = counts
    assert float(error) < 1e-4 and all(int(f) > int(forwards) and int(b) > int(backwards) for _, f, b, _ in others[1:])


def test_only_the_official_program_is_missing(result):
    assert list(result.left_out) == ["score_sde_pytorch (SciPy)"]
    assert "--official" in result.left_out["score_sde_pytorch (SciPy)"]


def test_calls_are_counted():
    network = likelihood.Counted(torch.nn.Linear(2, 2))
    network.network.forward = lambda x, c_noise: x**2
    x = torch.ones(1, 2, requires_grad=True)
    torch.autograd.grad(network(x, x).sum(), x)
    with torch.no_grad():
        network(x, x)
    assert (network.forwards, network.backwards) == (2, 1)


def test_signs_are_those_of_the_official_program():
    """Its first draw after seed 0; ours leave the global stream alone."""
    before, x = torch.get_rng_state(), torch.zeros(2, 3, 4, 4)
    signs = likelihood.signs(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(signs, torch.randint_like(x, low=0, high=2).float() * 2 - 1)
