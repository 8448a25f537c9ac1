"""Both Inception extractors of the benchmark give the same features."""

from __future__ import annotations

import torch

from diffusion_lab.bench import inception
from diffusion_lab.bench.benchmark import Setting, run


def test_features_are_equal():
    (benchmark,) = (
        run(benchmark, Setting(rounds=1, small=True))
        for benchmark in inception.benchmarks(Setting(rounds=1, small=True))
    )
    assert list(benchmark.measured) == ["ours", "torch-fidelity"] and not benchmark.left_out
    assert float(benchmark.note.split("relative error ")[1].split()[0]) < 1e-6
    assert "2 images" in benchmark.note


def test_a_wrong_feature_is_told():
    right = torch.eye(3, 4)
    note = inception.error({"ours": right * torch.tensor([[1.0], [1.01], [1.0]]), "theirs": right})
    assert note == "relative error 1.0e-02 (largest of 3 images)"
