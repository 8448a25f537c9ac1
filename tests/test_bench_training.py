"""The benchmarks of training and networks: implementations of equal size and equal outputs, and a true reading of memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_lab.bench import networks, official, training, unets
from diffusion_lab.bench.benchmark import Setting, Unavailable, memory, run
from diffusion_lab.interop.diffusers import unet

MIB = 2**20


@pytest.fixture
def setting():
    return Setting(threads=1, rounds=1, small=True)


def bytes_(count: int) -> torch.Tensor:
    return torch.empty(count * MIB, dtype=torch.uint8)


def turn():
    a, b = bytes_(10), bytes_(30)
    del a
    c = bytes_(5)
    del b
    return bytes_(20).numel() + c.numel()


def test_memory_is_the_peak_of_all_that_is_there_at_once():
    assert memory(turn, torch.device("cpu")) == (40 * MIB, 25 * MIB)


def test_memory_counts_what_a_backward_pass_keeps():
    x = torch.ones(MIB, requires_grad=True)  # 4 MiB, there before

    def chain():
        y = x
        for _ in range(5):
            y = y.exp()  # keeps its result
        y.sum().backward()
        x.grad = None

    # Five results, the gradients of two of them while one is computed from the other.
    peak, _ = memory(chain, torch.device("cpu"))
    assert peak == pytest.approx(7 * 4 * MIB, abs=1024)


def only(benchmark, *names):
    return replace(benchmark, implementations={name: benchmark.implementations[name] for name in names})


def test_the_races_of_a_step(setting):
    pytest.importorskip("diffusers")
    plain, recommended, peak = training.benchmarks(setting)
    for benchmark in (plain, recommended):
        result = run(only(benchmark, "ours", "diffusers", "score_sde_pytorch"), setting)
        assert result.ours == "ours" and list(result.measured) == ["ours", "diffusers"]
        assert "--official" in result.left_out["score_sde_pytorch"]
        assert result.note == "parameters: ours 2,245,763, diffusers 2,245,763"
    result = run(only(peak, "ours", "ours, checkpoint=true"), setting)
    assert result.measured["ours, checkpoint=true"][0] < 0.6 * result.measured["ours"][0]


def test_diffusers_computes_the_same_network(setting):
    pytest.importorskip("diffusers")
    ours, theirs = unets.ours(setting, 32).network.eval(), unets.diffusers(setting, 32).network.eval()
    ours.load_state_dict(unet(ours, theirs.state_dict()))
    x, t = training.images(setting, 2), torch.tensor([3, 900])
    with torch.no_grad():
        a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("program", [unets.ours, unets.diffusers])
def test_a_step_moves_weights_by_the_rate_of_adam(setting, program):
    pytest.importorskip("diffusers")
    step = program(setting, 32)
    before = [p.detach().clone() for p in step.network.parameters()]
    assert step(training.images(setting, 2)).isfinite()
    moved = [(p - q).abs().max().item() for p, q in zip(step.network.parameters(), before)]
    assert max(moved) == pytest.approx(unets.RATE, rel=0.05)


def test_networks_races_tell_what_is_absent(setting):
    for benchmark in networks.benchmarks(setting):
        result = run(benchmark, setting)
        assert list(result.measured) == ["ours"] and "--official" in next(iter(result.left_out.values()))


# --------------------------------------------------------------------------- modules of official programs


def program(folder: Path, name: str, text: str) -> None:
    (folder / name / "models").mkdir(parents=True)
    (folder / name / "models" / "__init__.py").write_text("")
    (folder / name / "models" / "net.py").write_text(f"import settings\nWORD = settings.WORD + {text!r}\n")
    (folder / name / "settings.py").write_text("WORD = 'of '\n")


def test_each_program_has_its_own_modules_and_leaves_no_trace(tmp_path):
    for name in ("first", "second"):
        program(tmp_path, name, name)
    before, path = dict(sys.modules), list(sys.path)
    sys.modules["settings"] = own = type(sys)("settings")
    try:
        words = [official.module(Setting(official=tmp_path), name, "models.net").WORD for name in ("first", "second")]
        assert words == ["of first", "of second"]
        assert sys.modules["settings"] is own
    finally:
        del sys.modules["settings"]
    assert sys.path == path and sys.modules == before


def test_a_clone_that_is_not_there_is_told(tmp_path):
    for given, words in ((None, "--official"), (tmp_path, "edm, a clone of edm, does not exist")):
        with pytest.raises(Unavailable, match=words):
            official.module(Setting(official=given), "edm", "training.networks")
