"""One evaluation on 1, 2 and 3 processes, killed and started again: the same files and the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_job import BATCH, SAMPLES, SEED, tiny_model

from diffusion_lab.data import Digits
from diffusion_lab.evaluation import score_likelihood
from diffusion_lab.metric import ClassifierFeatures, frechet_distance, kernel_distance, moments, to_uint8

JOB = Path(__file__).with_name("evaluation_job.py")


def start(world: int, folder: Path, seconds: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(JOB), str(world), str(folder), str(seconds)], start_new_session=True)


def finish(world: int, folder: Path) -> Path:
    assert start(world, folder).wait(timeout=240) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All files below, but for the seconds that drawing took."""
    found = (p for p in sorted((folder / "work").rglob("*")) if p.is_file() and p.parent.name != "cost")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def flat(value, path=""):
    """Every number of nested records by its path."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in flat(child, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, child in enumerate(value) for k, v in flat(child, f"{path}/{i}").items()}
    return {path: value}


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    assert files(one) == files(other)
    a, b = (flat(json.loads((folder / "records.json").read_text())) for folder in (one, other))
    assert a.keys() == b.keys()
    for key, value in a.items():
        wanted = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
        assert b[key] == wanted, key


def draws(folder: Path) -> list[tuple[int, ...]]:
    return [tuple(map(int, line.split())) for line in (folder / "draws.log").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return finish(1, tmp_path_factory.mktemp("alone"))


def test_what_one_process_leaves(alone):
    records = json.loads((alone / "records.json").read_text())
    assert {"fd_digits_held_out_37", "kd_digits_held_out_37", "precision_digits_held_out_37"} <= records.keys()
    assert {"bound_bits_per_dim", "flow_bits_per_dim", "inception_score_digits_37"} <= records.keys()
    distance = records["fd_digits_held_out_37"]
    assert len(distance["repeats"]) == 2 and distance["min"] == min(distance["repeats"]) and distance["nfe"] == 3
    assert distance["value"] == pytest.approx(sum(distance["repeats"]) / 2)
    assert distance["real"] < distance["value"] and "classes" not in distance, "counts are one repeat's own"
    bits = records["flow_bits_per_dim"]
    assert bits["protocol"]["count"] == 7 and len(bits["repeats"]) == 2
    assert bits["value"] == pytest.approx(sum(bits["terms"].values())) and bits["standard_error"] > 0
    # Each sample once, none more than asked for, in fixed chunks.
    want = [(i, min(BATCH, 2 * SAMPLES - i), 0) for i in range(0, 2 * SAMPLES, BATCH)]
    assert draws(alone) == want


def test_the_numbers_are_those_of_the_samples(alone, tmp_path):
    """Every range of seeds against the whole held-out split, beside as many training images."""
    records, data, extractor = json.loads((alone / "records.json").read_text()), Digits(), ClassifierFeatures(steps=5)
    extractor.prepare(data.images("train"), data.labels("train"))
    drawn = extractor(to_uint8(tiny_model().sample(2 * SAMPLES, seed=SEED, batch_size=BATCH)) / 255)
    held_out, train = extractor(data.images("held_out")), extractor(data.images("train", SAMPLES))
    distance, kernel = records["fd_digits_held_out_37"], records["kd_digits_held_out_37"]
    for part, value, of_kernel in zip(drawn.split(SAMPLES), distance["repeats"], kernel["repeats"], strict=True):
        assert value == pytest.approx(frechet_distance(moments(part), moments(held_out)), rel=1e-6)
        assert of_kernel == pytest.approx(kernel_distance(part, held_out, 100, SAMPLES).value, rel=1e-6)
    assert distance["real"] == pytest.approx(frechet_distance(moments(train), moments(held_out)), rel=1e-6)
    bits = score_likelihood(tiny_model(), "bound", data, tmp_path, 7, repeats=2, batch_size=4, seed=SEED)
    assert records["bound_bits_per_dim"]["value"] == bits["bound_bits_per_dim"]["value"]


@pytest.mark.parametrize("world", [3])
def test_more_processes_give_the_same_files_and_numbers(alone, tmp_path, world):
    many = finish(world, tmp_path / "many")
    assert_same(alone, many, 1e-9)
    shares = draws(many)
    assert sorted(s[:2] for s in shares) == [s[:2] for s in draws(alone)]
    assert {rank for *_, rank in shares} == set(range(world))


def test_killed_and_started_again_nothing_is_drawn_twice(alone, tmp_path):
    folder = tmp_path / "killed"
    process = start(2, folder, seconds=0.4)
    while len(list((folder / "work" / "samples").glob("*.npy"))) < 5:  # within a draw that has to be done again
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder / "store").unlink(missing_ok=True)
    kept = {p: p.stat().st_mtime_ns for p in (folder / "work" / "samples").glob("*.npy")}
    finish(2, folder)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert_same(alone, folder, 1e-9)
    assert len(draws(folder)) <= len(draws(alone)) + 2 and {s[:2] for s in draws(folder)} == {
        s[:2] for s in draws(alone)
    }
    assert not list((folder / "work").rglob(".*.partial")), "half-written files stay"
