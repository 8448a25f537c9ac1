"""What the benchmarks of samplers can be held to: that all implementations do the same work."""

from __future__ import annotations

import re

import pytest
import torch

from diffusion_lab.bench import sampling
from diffusion_lab.bench.benchmark import Setting, Unavailable, run

SETTING = Setting(threads=1, rounds=1, small=True)
CALLS = {"ddpm": 5, "ddim": 5, "heun": 9, "corrected": 10}
"""Calls of the network in five steps; Heun's last step asks once."""
OTHERWISE = {("heun", "azula"): 10, ("corrected", "ours"): 10, ("corrected", "hand-written"): 10}


class Counting(sampling.ConstantNetwork):
    """Counts its calls."""

    calls = 0

    def __call__(self, x, *message):
        self.calls += 1
        return super().__call__(x, *message)


@pytest.mark.parametrize("name", sampling.METHODS)
def test_ours_is_the_floors_and_all_ask_the_network_equally_often(name, monkeypatch):
    monkeypatch.setattr(sampling, "ConstantNetwork", Counting)
    made = []
    monkeypatch.setattr(
        Counting, "__init__", lambda self, answer: (super(Counting, self).__init__(answer), made.append(self))[0]
    )
    benchmark = sampling.overhead(name, (2, 3, 4, 4), 5, SETTING)
    counted = {}
    for implementation, make in benchmark.implementations.items():
        try:
            work = make()
        except (ImportError, Unavailable):
            continue
        before = made[0].calls
        images = work()
        counted[implementation] = made[0].calls - before
        assert images.shape == (2, 3, 4, 4) and images.isfinite().all()
    assert {"ours", "hand-written"} <= counted.keys()
    assert counted == {implementation: OTHERWISE.get((name, implementation), CALLS[name]) for implementation in counted}
    assert float(re.search(r"differ by (\S+) of", benchmark.note({})).group(1)) < (2e-4 if name == "heun" else 1e-6)


def test_the_whole_race_samples():
    benchmark = sampling.end_to_end(SETTING)
    result = run(benchmark, SETTING)
    assert all(len(values) == 1 and values[0] > 0 for values in result.measured.values())
    images = benchmark.implementations["ours"]()()
    assert images.shape == (2, 3, 32, 32) and torch.equal(images, benchmark.implementations["ours"]()())


def test_the_steps_of_azulas_corrector_sample():
    result = run(sampling.without_fresh_noise((2, 3, 4, 4), 5, SETTING), SETTING)
    assert result.measured["ours, with norms"][0] > 0
