"""What the races of samplers can be held to: that all contestants do the same work."""

from __future__ import annotations

import re

import pytest
import torch

from diffusion_lab.bench import sampling
from diffusion_lab.bench.race import Absent, Setting, run

SETTING = Setting(threads=1, rounds=1, small=True)
CALLS = {"ddpm": 5, "ddim": 5, "heun": 9, "corrected": 10}
"""Calls of the network in five steps; Heun's last step asks once."""
OTHERWISE = {("heun", "azula"): 10, ("corrected", "ours"): 10, ("corrected", "floor"): 10}


class Counting(sampling.Ready):
    """Counts its calls."""

    calls = 0

    def __call__(self, x, *message):
        self.calls += 1
        return super().__call__(x, *message)


@pytest.mark.parametrize("name", sampling.METHODS)
def test_ours_is_the_floors_and_all_ask_the_network_equally_often(name, monkeypatch):
    monkeypatch.setattr(sampling, "Ready", Counting)
    made = []
    monkeypatch.setattr(
        Counting, "__init__", lambda self, answer: (super(Counting, self).__init__(answer), made.append(self))[0]
    )
    race = sampling.overhead(name, (2, 3, 4, 4), 5, SETTING)
    counted = {}
    for contestant, make in race.contestants.items():
        try:
            work = make()
        except (ImportError, Absent):
            continue
        before = made[0].calls
        images = work()
        counted[contestant] = made[0].calls - before
        assert images.shape == (2, 3, 4, 4) and images.isfinite().all()
    assert {"ours", "floor"} <= counted.keys()
    assert counted == {contestant: OTHERWISE.get((name, contestant), CALLS[name]) for contestant in counted}
    assert float(re.search(r"differ by (\S+) of", race.note({})).group(1)) < (2e-4 if name == "heun" else 1e-6)


def test_the_whole_race_samples():
    race = sampling.whole(SETTING)
    result = run(race, SETTING)
    assert all(len(values) == 1 and values[0] > 0 for values in result.measured.values())
    images = race.contestants["ours"]()()
    assert images.shape == (2, 3, 32, 32) and torch.equal(images, race.contestants["ours"]()())
