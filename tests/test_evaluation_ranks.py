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
from evaluation_job import BATCH, SAMPLES

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
    assert sum(distance["classes"].values()) == SAMPLES and distance["real"] < distance["value"]
    bits = records["flow_bits_per_dim"]
    assert bits["protocol"]["count"] == 7 and len(bits["repeats"]) == 2
    assert bits["value"] == pytest.approx(sum(bits["terms"].values())) and bits["standard_error"] > 0
    # Each sample once, none more than asked for, in fixed chunks.
    want = [(i, min(BATCH, 2 * SAMPLES - i), 0) for i in range(0, 2 * SAMPLES, BATCH)]
    assert draws(alone) == want


@pytest.mark.parametrize("world", [2, 3])
def test_more_processes_give_the_same_files_and_numbers(alone, tmp_path, world):
    many = finish(world, tmp_path / "many")
    assert_same(alone, many, 1e-9)
    shares = draws(many)
    assert sorted(s[:2] for s in shares) == [s[:2] for s in draws(alone)]
    assert {rank for *_, rank in shares} == set(range(world))


def test_killed_and_started_again_nothing_is_drawn_twice(alone, tmp_path):
    folder = tmp_path / "killed"
    for chunks in (3, 8):  # killed twice, each time within a draw that then has to be done again
        process = start(2, folder, seconds=0.4)
        while len(list((folder / "work" / "samples").glob("*.npy"))) < chunks:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (folder / "store").unlink(missing_ok=True)
    kept = {p: p.stat().st_mtime_ns for p in (folder / "work" / "samples").glob("*.npy")}
    finish(2, folder)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert_same(alone, folder, 1e-9)
    assert len(draws(folder)) <= len(draws(alone)) + 4 and {s[:2] for s in draws(folder)} == {
        s[:2] for s in draws(alone)
    }
    assert not list((folder / "work").rglob(".*.partial")), "half-written files stay"
