"""Evaluating from the command line, each command run for real in a new process; and what the commands consist of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_job import tiny_model
from PIL import Image
from test_end_to_end import python, run

from diffusion_lab.data import Digits
from diffusion_lab.evaluation import SampleStore
from diffusion_lab.metric import Statistics
from diffusion_lab.run.measure import BothSplits
from diffusion_lab.run.sample import with_earlier
from diffusion_lab.run.sample_files import join, write_pngs
from diffusion_lab.run.sample_spec import folder, sample_spec

QUICK = ("sampler=ddim", "sampler.steps=3", "batch_size=5", "trainer.accelerator=cpu")


def command(module: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    return python("-m", f"diffusion_lab.{module}", *arguments, cwd=cwd, code=code)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which a model of digits was trained for a moment on two processes, evaluated on the way."""
    root = tmp_path_factory.mktemp("trained")
    run(
        "train.py", "debug=fast", "trainer.accelerator=cpu", "trainer.devices=2", "logger=csv",
        "callback.evaluation.every_n_steps=2", "callback.evaluation.weights=both", "callback.evaluation.best=fd",
        cwd=root,
    )  # fmt: skip
    return root


def test_training_on_two_processes_evaluates_on_both(trained):
    folder = next(trained.glob("logs/train/ddpm_digits/*"))
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert metrics["fd_digits_held_out_20"]["protocol"]["samples"] == 20
    assert sum(metrics["fd_digits_held_out_20"]["classes"].values()) == 20, "each sample counts once"
    assert metrics["bound_bits_per_dim"]["protocol"]["count"] == 4 and "raw_bound_bits_per_dim" in metrics
    assert (folder / "checkpoints/best.ckpt").exists() and not (folder / "evaluation").exists()


def test_more_devices_and_a_second_start_change_nothing(trained):
    results = []
    for devices, place in ((1, "one"), (2, "two")):
        run(
            "sample.py", "ckpt_path=last", *QUICK, "num_samples=13", "evaluate=true", "likelihood_samples=3",
            f"trainer.devices={devices}", f"out={place}", cwd=trained,
        )  # fmt: skip
        results.append(json.loads((trained / place / "results.json").read_text())["metrics"])
    one, two = (np.load(trained / place / "samples.npz")["arr_0"] for place in ("one", "two"))
    assert np.array_equal(one, two) and one.shape == (13, 8, 8, 1) and len({i.tobytes() for i in one}) == 13
    assert results[0].keys() == results[1].keys() and "coverage_digits_held_out_13" in results[0]
    for name, record in results[0].items():
        assert results[1][name]["value"] == pytest.approx(record["value"], rel=1e-9), name
    # More of them: only what lacks is drawn, and the earlier numbers stay beside the new ones.
    said = run(
        "sample.py", "ckpt_path=last", *QUICK, "num_samples=20", "evaluate=true", "likelihood_samples=0", "out=one",
        cwd=trained,
    )  # fmt: skip
    assert "sampling 10 from" in said and "10 of 20 exist already" in said
    more = np.load(trained / "one/samples.npz")["arr_0"]
    assert np.array_equal(more[:13], one) and len(more) == 20
    metrics = json.loads((trained / "one/results.json").read_text())["metrics"]
    assert {"fd_digits_held_out_13", "fd_digits_held_out_20", "bound_bits_per_dim"} <= metrics.keys()


def test_samples_of_another_request_are_not_mixed(trained):
    run("sample.py", "ckpt_path=last", *QUICK, "num_samples=5", "out=mixed", cwd=trained)
    said = run("sample.py", "ckpt_path=last", *QUICK, "num_samples=5", "seed=1", "out=mixed", cwd=trained, code=2)
    assert "seed 0 there, 1 requested" in said and "choose another out=" in said


def test_statistics_of_a_split_or_a_folder_are_made_and_used(trained, tmp_path):
    said = command("stats", "data=digits", "split=train", f"out={tmp_path}/digits.npz", cwd=trained)
    found = Statistics.load(tmp_path / "digits.npz")
    assert found.moments.count == 1400 and found.protocol["reference"] == "digits train" and "1,400 images" in said
    assert f"measuring 1,400 images of train with digits features; writes {tmp_path}/digits.npz" in said
    assert f"written to {tmp_path}/digits.npz: mu and sigma" in said
    said = run(
        "sample.py", "ckpt_path=last", *QUICK, "num_samples=10", "evaluate=true", "likelihood=none",
        f"metric.reference={tmp_path}/digits.npz", cwd=trained,
    )  # fmt: skip
    assert "fd_digits_digits_10" in said
    both = command("stats", "data=digits", "split=all", "count=1500", f"out={tmp_path}/all.npz", cwd=trained)
    assert Statistics.load(tmp_path / "all.npz").moments.count == 1500 and "digits all" in both


@pytest.mark.parametrize("arguments, message", [
    (["data=digits", "split=test"], "split=test must be one of train, held_out, all"),
    (["data=digits", "count=few"], "count=few must be a number"),
    (["data=digit"], "did you mean digits?"),
    (["data=toy2d"], "points in the plane have no feature statistics"),
    (["data=digits", "metric=inception", "metric.features.weights=nowhere.pth"], "Inception weights nowhere.pth are missing"),
])  # fmt: skip
def test_the_stats_command_refuses_in_one_line(tmp_path, arguments, message):
    said = command("stats", *arguments, cwd=tmp_path, code=2)
    assert message in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


def test_every_part_of_a_request_has_a_directory_of_its_own(tmp_path):
    model, contents = tiny_model(), {"config": {"model": {"sigma_max": 50, "loss": 1}}, "global_step": 4}
    base = {"weights": "ema", "sampler": {"steps": 3}, "precision": "32-true"}
    base |= {"seed": 3, "batch_size": 7, "device": "cpu"}

    def place(**changes):
        return folder(sample_spec(contents, model, **base | changes), "ddim", tmp_path, None)

    others = {
        "weights": "raw",
        "sampler": {"steps": 4},
        "precision": "bf16-mixed",
        "seed": 0,
        "batch_size": 5,
        "device": "cuda",
    }
    places = [place(), *(place(**{key: value}) for key, value in others.items())]
    contents["config"]["model"]["loss"] = 2  # which samples do not depend on
    assert place() == places[0]
    contents["config"]["model"]["sigma_max"] = 90  # of another noise, and the same weights
    places.append(place())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert len({*places, place()}) == 9


def test_all_samples_join_in_one_file_and_in_pictures(tmp_path):
    series = SampleStore(tmp_path, tiny_model(), batch_size=5)
    series.complete(12)
    rows = series.rows(range(12))[:].numpy()
    join(series, 12, tmp_path / "samples.npz")
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], rows)
    write_pngs(series, range(5, 10), tmp_path / "png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png/000007.png")), rows[7, ..., 0])
    before = (tmp_path / "png/000005.png").stat().st_mtime_ns
    write_pngs(series, range(5, 10), tmp_path / "png")
    assert (tmp_path / "png/000005.png").stat().st_mtime_ns == before and len(list((tmp_path / "png").iterdir())) == 5


def test_new_numbers_join_earlier_ones(tmp_path):
    path = tmp_path / "results.json"
    assert with_earlier({"step": 2, "metrics": {"a": 1}}, path) == {"step": 2, "metrics": {"a": 1}}
    path.write_text(json.dumps({"step": 1, "metrics": {"a": 5, "b": 6}}))
    assert with_earlier({"step": 2, "metrics": {"a": 1}}, path) == {"step": 2, "metrics": {"a": 1, "b": 6}}


def test_both_splits_as_one():
    data, other = Digits(), Digits()
    part = BothSplits(data).images("all", 10, first=1395)
    assert torch.equal(part, torch.cat([data.images("train", 5, first=1395), data.images("held_out", 5)]))
    assert torch.equal(BothSplits(data).images("all", 4, first=1402), data.images("held_out", 4, first=2))
    other.splits.held_out.x = 16 - other.splits.held_out.x
    assert BothSplits(data).size("all") == 1797 and BothSplits(data).fingerprint("all") != BothSplits(
        other
    ).fingerprint("all")
