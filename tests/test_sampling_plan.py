"""A sampling run says beforehand what it draws, how long it takes and what it writes, and refuses what exceeds them."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_job import evaluator, tiny_model

from diffusion_lab.control import DPS, Mask, RePaint
from diffusion_lab.data import Digits
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import ChunkedArray, SampleStore
from diffusion_lab.guidance import Guided
from diffusion_lab.run import plan
from diffusion_lab.run.sample_files import join, left_behind
from diffusion_lab.storage.atomic_file import format_bytes

FABRIC = SimpleNamespace(world_size=2, device=torch.device("cpu"), autocast=nullcontext)


def config(**changes):
    options = {"npz": True, "png": False, "batch_size": 5, "compile": False, "compare": None, "allow_long": False}
    return SimpleNamespace(**options | changes)


@pytest.fixture
def free(monkeypatch):
    """Sets the free bytes of the disk."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


@pytest.fixture
def seconds(monkeypatch):
    """Sets the seconds of a call of the network for one image, and tells of how many it was asked."""
    asked = []

    def fix(one):
        monkeypatch.setattr(plan, "seconds_per_call", lambda _, batch: asked.append(batch) or one * batch)
        return asked

    return fix


def tell(tmp_path, count, judge=None, **changes):
    series = SampleStore(tmp_path / "out", tiny_model(), batch_size=5)
    plan.announce_plan(config(**changes), FABRIC, [series], count, "step 7", judge, Digits() if judge else None)
    return series


def test_what_the_disk_cannot_hold_is_refused_at_once_and_leaves_nothing(tmp_path, free, seconds):
    asked = seconds(1.0)
    free(2 * 64 * 10**9)
    with pytest.raises(
        ConfigError, match=r"10,000,000,000 samples need 1.28 TB, but .*out has 128 GB free: generate fewer"
    ):
        tell(tmp_path, 10**10)
    assert asked == [] and not (tmp_path / "out").exists()
    free(1279)
    with pytest.raises(ConfigError, match=r"10 samples need 1.28 kB"):  # 64 bytes each, and as many in samples.npz
        tell(tmp_path, 10)
    tell(tmp_path, 10, npz=False)


def test_what_takes_longer_than_a_day_needs_a_key(tmp_path, free, seconds, capsys):
    free(1e18)
    asked = seconds(0.5)  # 3 calls for each of 2 x 200,000: 3.5 days on two devices
    with pytest.raises(ConfigError, match=r"take about 3 days: .*add allow_long=true"):
        tell(tmp_path, 400_000)
    assert asked == [5] and capsys.readouterr().out == ""
    tell(tmp_path, 400_000, allow_long=True)
    assert "sampling 400,000 from step 7 on 2 x cpu, about 3 days, 51.2 MB in " in capsys.readouterr().out


def test_the_jumps_of_a_control_and_both_networks_of_a_guidance_are_counted(tmp_path, free, seconds, capsys):
    free(1e18), seconds(1.0)
    mask, guide = Mask(torch.eye(8)), torch.rand(1, 1, 8, 8)
    for guidance, control, evaluations in (
        (None, RePaint(mask, guide, jump_length=1, resamplings=5), 11),
        (None, DPS(mask, guide), 3),
        (lambda denoiser: Guided(denoiser, denoiser, 2.0), None, 6),
    ):
        model = tiny_model()
        model.guidance, model.control = guidance, control
        model.denoiser.nfe = 0
        model.sample(1)
        assert model.denoiser.nfe == evaluations
        series = SampleStore(tmp_path / "out", model, batch_size=5)
        plan.announce_plan(config(), FABRIC, [series], 2000, "step 7", None, None)
        assert f"about {plan.format_seconds(1000 * evaluations)}," in capsys.readouterr().out


def test_what_is_there_is_neither_counted_nor_drawn_again(tmp_path, free, seconds, capsys):
    free(1e18), seconds(1e-3)
    series = tell(tmp_path, 10_000)
    assert "sampling 10,000 from step 7 on 2 x cpu, about 15 s, 1.28 MB in " in capsys.readouterr().out
    for chunk in series.samples.ranges(4000):
        series.samples.write(chunk, torch.zeros(len(chunk), 8, 8, 1, dtype=torch.uint8))
    tell(tmp_path, 10_000)
    out = capsys.readouterr().out
    assert "sampling 6,000 from" in out and "about 9 s" in out and "; 4,000 of 10,000 exist already" in out


def test_a_comparison_names_the_directory_that_holds_those_of_its_samplers(tmp_path, free, seconds, capsys):
    free(1e18), seconds(1e-3)
    series = [SampleStore(tmp_path / name, tiny_model(), batch_size=5) for name in ("ddim5", "ddim10", "heun5")]
    plan.announce_plan(config(), FABRIC, series, 10_000, "step 7", None, None)
    out = capsys.readouterr().out
    assert "sampling 30,000 from" in out and f"in 3 directories of {os.path.relpath(tmp_path)}\n" in out


def test_a_few_samples_are_not_worth_the_question(tmp_path, free, seconds, capsys):
    free(1e18)
    asked = seconds(1.0)
    tell(tmp_path, 20)
    assert asked == [] and "sampling 20 from step 7 on 2 x cpu, 2.56 kB in " in capsys.readouterr().out


def test_an_evaluation_says_what_it_does(tmp_path, free, seconds, capsys):
    free(1e18), seconds(1e-3)
    judge = evaluator(tmp_path, samples=500, repeats=2, likelihood_repeats=3)
    judge.prepare(Digits(), torch.device("cpu"))
    tell(tmp_path, 1000, judge)
    message = capsys.readouterr().out.splitlines()[-1]
    assert message == (
        "evaluation: 2 x 500 samples against held_out (frechet, kernel, inception_score, neighbours); likelihood "
        "(bound, flow) of 7 held-out items, 3 times, about 3 s more; writes results.json"
    )
    room = plan.size_on_disk(tiny_model(), 10, judge)
    assert room == 10 * (64 + 4 * judge.features.dimensions), "features are stored, too"


def test_pictures_of_points_are_refused_before_they_are_drawn(tmp_path):
    series = SimpleNamespace(model=None, folder=tmp_path, images=False)
    with pytest.raises(ConfigError, match="png=true"):
        plan.announce_plan(config(png=True), FABRIC, [series], 5, "", None, None)


def test_the_missing_chunks_are_found_by_one_look_into_the_folder(tmp_path, monkeypatch):
    store, asked = ChunkedArray(tmp_path, 2), []
    for start in (4, 8):
        store.write(range(start, start + 2), torch.zeros(2, 3))
    monkeypatch.setattr(store, "has", lambda chunk: asked.append(chunk.start) or chunk.start == 4)
    assert [chunk.start for chunk in store.missing(12)] == [0, 2, 6, 8, 10] and asked == [4, 8]


@pytest.mark.parametrize(
    "size, message", [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1.28e12, "1.28 TB"), (9e18, "9e+03 PB")]
)
def test_sizes_in_words(size, message):
    assert format_bytes(size) == message


def test_one_file_of_all_samples_is_what_other_programs_read(tmp_path):
    series = SampleStore(tmp_path, tiny_model(), batch_size=5)
    series.complete(12)
    join(series, 12, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as file:  # as guided-diffusion's evaluator and `np.savez(file, images)` do
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], series.rows(range(12))[:].numpy())
    assert left_behind(tmp_path, 12, config(npz=False)) == []
    assert left_behind(tmp_path, 10, config(npz=False)) == [
        "samples.npz was written by an earlier command: it holds 12 samples, not 10"
    ]
    (tmp_path / "png").mkdir()
    for index in range(3):
        (tmp_path / "png" / f"{index}.png").touch()
    assert left_behind(tmp_path, 3, config(png=True)) == [] and len(left_behind(tmp_path, 2, config(png=True))) == 1
