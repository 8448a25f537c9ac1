"""The benchmark of sampling: both implementations call the network equally often, and the parts are the whole."""

from __future__ import annotations

import pytest
import torch
from evaluation_job import tiny_model

from diffusion_lab.bench import pipeline
from diffusion_lab.bench.benchmark import Setting, run
from diffusion_lab.data import Digits
from diffusion_lab.metric import ClassifierFeatures


def test_digits_are_sampled_and_scored():
    setting = Setting(rounds=1, small=True)
    prepared = pipeline.benchmarks(setting)  # its files are there as long as it is
    result = run(next(prepared), setting)
    assert set(result.measured) == {"ours", "its network evaluations alone"} and not result.left_out
    found = dict(part.rsplit(" ", 2)[:2] for part in result.note.removeprefix("share of each part: ").split(", "))
    assert list(found) == ["network", "sampler", "features", "metrics", "files and the rest"]
    assert sum(map(float, found.values())) == pytest.approx(100, abs=0.3) and min(map(float, found.values())) >= 0


def test_both_call_the_network_equally_often(tmp_path):
    network, asked = tiny_model().denoiser.network, []
    network.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    problem = pipeline.Problem(network, Digits(), ClassifierFeatures(steps=5), 7, 4, 3, torch.device("cpu"))
    whole, calls = pipeline.whole(problem, str(tmp_path)), pipeline.calls(problem)
    parts = whole()
    assert asked == [4] * 3 + [3] * 3 and all(seconds > 0 for seconds in parts.values())
    asked.clear()
    calls()
    assert asked == [4] * 3 + [3] * 3
