"""A resumed run goes on as the same run, without a step twice; a trained run takes what is found out later."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb_offline
from PIL import Image
from wandb_offline import config, history, offline_runs, records

from diffusion_lab.callback.media import log_pictures
from diffusion_lab.logger.loggers import build_loggers, finish_loggers, reopen
from diffusion_lab.logger.wandb import lock
from diffusion_lab.storage.revision import revision

clean, keyed = wandb_offline.clean, wandb_offline.keyed


def run_id(run_dir: Path) -> str:
    return (run_dir / "wandb_run_id.txt").read_text().strip()


def next_second() -> None:
    """wandb names its folders by the second."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.02)


def save(run_dir: Path, *steps: int) -> Path:
    """Checkpoints of a run directory; the newest."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    for step in steps:
        path = run_dir / "checkpoints" / f"step_{step:08d}.ckpt"
        torch.save({"global_step": step, "weights": torch.full((4,), float(step))}, path)
    return path


def train(run_dir: Path, first: int, last: int, step: int = 0, checkpoint: Path | None = None, **node: object) -> None:
    """Log loss = 1 / step for a stretch of steps, and val for every third."""
    loggers = build_loggers({"wandb": node}, run_dir, {"lr": 0.1}, step, checkpoint)
    for now in range(first, last + 1):
        for log in loggers:
            log.log_metrics({"loss": 1 / now}, now)
            if now % 3 == 0:
                log.log_metrics({"val": 2 / now}, now)
    finish_loggers(loggers)


def cells(*folders: Path) -> list[tuple[int, str, float]]:
    """(step, metric, value) of everything that runs logged, in its order."""
    rows = [row for folder in folders for row in history(folder)]
    return [(r["trainer/global_step"], k, v) for r in rows for k, v in r.items() if k in ("loss", "val")]


def test_a_resumed_run_is_the_same_run_without_a_step_twice(keyed, tmp_path):
    """Steps 1..7, then 6..10 from the checkpoint of step 5, in the same run directory."""
    first = tmp_path / "first"
    train(tmp_path / "straight", 1, 10)
    train(first, 1, 7)
    next_second()
    own = run_id(first)
    train(first, 6, 10, 5, save(first, 3, 5))
    assert run_id(first) == own != run_id(tmp_path / "straight")
    pieces = offline_runs(first)
    assert len(pieces) == 2 and {r.run.run_id for p in pieces for r in records(p) if r.HasField("run")} == {own}
    assert cells(*pieces) == cells(*offline_runs(tmp_path / "straight"))
    assert (first / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()
    assert config(pieces[1])["run_dir"] == str(first)


def test_a_number_that_the_kill_kept_back_is_sent_when_it_comes_again(keyed, tmp_path):
    """Killed between two metrics of one step: after resuming only the missing one is new."""
    train(tmp_path, 1, 5)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows[4]["val"] == "" and rows[2]["val"]
    (tmp_path / "metrics.csv").write_text("step,loss,val\n1,1.0,\n2,0.5,\n3,0.3333333333333333,\n")
    next_second()
    train(tmp_path, 3, 4, 2, save(tmp_path, 2))
    assert cells(offline_runs(tmp_path)[1]) == [(3, "val", 2 / 3), (4, "loss", 0.25)]


def test_pictures_that_the_run_has_are_not_shown_twice(keyed, tmp_path):
    """Those before the last number that was sent; one at its step may have been lost, and is shown."""
    train(tmp_path, 1, 7)
    Image.new("L", (4, 4)).save(tmp_path / "samples.png")
    next_second()
    loggers = build_loggers({"wandb": {}}, tmp_path, {}, 5, save(tmp_path, 5))
    for step in (6, 7, 8):
        log_pictures(loggers, {"samples": tmp_path / "samples.png"}, step)
    finish_loggers(loggers)
    assert [row["trainer/global_step"] for row in history(offline_runs(tmp_path)[1])] == [7, 8]


@pytest.mark.parametrize("newest", [3, 5])
def test_another_directory_starts_a_branch(keyed, tmp_path, newest):
    """Its run of W&B is another one, and has every number; the CSV file has the history that the two share."""
    train(tmp_path / "first", 1, 7)
    save(tmp_path / "first", 3, newest)
    train(tmp_path / "branch", 4, 6, 3, tmp_path / "first" / "checkpoints" / "step_00000003.ckpt")
    assert run_id(tmp_path / "branch") != run_id(tmp_path / "first")
    assert [step for step, key, _ in cells(*offline_runs(tmp_path / "branch")) if key == "loss"] == [4, 5, 6]
    rows = list(csv.DictReader((tmp_path / "branch" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len((tmp_path / "first" / "metrics.csv").read_text().splitlines()) == 8


def test_a_resumed_run_with_another_id_has_every_number(keyed, tmp_path):
    train(tmp_path, 1, 4)
    next_second()
    train(tmp_path, 3, 4, 2, save(tmp_path, 2), id="another")
    assert run_id(tmp_path) == "another"
    assert [step for step, key, _ in cells(offline_runs(tmp_path)[1]) if key == "loss"] == [3, 4]


def artifacts(folder: Path) -> list[tuple[set[str], dict, Path, str]]:
    """(aliases, metadata, file, digest) of each version that a run logged."""
    found = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "artifact":
            (entry,) = record.artifact.manifest.contents
            assert (record.artifact.type, entry.path) == ("model", "model.ckpt")
            facts = json.loads(record.artifact.metadata)
            found.append((set(record.artifact.aliases), facts, Path(entry.local_path), entry.digest))
    return found


def test_checkpoints_are_uploaded_with_their_facts(keyed, tmp_path):
    """The newest and the best; offline the files stay until `wandb sync`, whatever happens to the checkpoints."""
    newest = save(tmp_path, 2, 3)
    torch.save({"global_step": 2, "weights": torch.ones(2)}, tmp_path / "checkpoints" / "best.ckpt")
    wanted = {path: path.read_bytes() for path in (tmp_path / "checkpoints" / "best.ckpt", newest)}
    train(tmp_path, 1, 3, log_model=True)
    for path in wanted:
        path.unlink()
    best, latest = artifacts(*offline_runs(tmp_path))
    assert best[0] == {"best", "step_2", "latest"} and latest[0] == {"step_3", "latest"}  # the last "latest" holds
    assert best[1] == {"step": 2, "metrics": {"loss": 0.5}, "revision": revision()}
    assert latest[1] == {"step": 3, "metrics": {"loss": 1 / 3, "val": 2 / 3}, "revision": revision()}
    for (_, _, file, digest), data in zip((best, latest), wanted.values(), strict=True):
        assert file.read_bytes() == data and file.is_relative_to(tmp_path)
        assert digest == base64.b64encode(hashlib.md5(data).digest()).decode()


def test_no_checkpoint_is_uploaded_unasked_and_none_is_no_error(keyed, tmp_path, capsys):
    save(tmp_path / "unasked", 2)
    train(tmp_path / "unasked", 1, 3)
    train(tmp_path / "none", 1, 3, log_model=True)
    assert artifacts(*offline_runs(tmp_path / "unasked")) == artifacts(*offline_runs(tmp_path / "none")) == []
    assert "failed" not in capsys.readouterr().out


def test_a_trained_run_takes_results_and_pictures_later(keyed, tmp_path):
    node = {"wandb": {"log_model": True, "name": "baseline", "tags": ["a"]}}
    train(tmp_path, 1, 4, **node["wandb"])
    log = (tmp_path / "metrics.csv").read_bytes()
    next_second()
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "quality.png")
    loggers = reopen(tmp_path, node)
    for logger in loggers:
        logger.log_metrics({"sample/fid_1000": 12.5}, step=4)
    log_pictures(loggers, {"sample/quality": tmp_path / "quality.png"}, step=4)
    finish_loggers(loggers)
    first, second = offline_runs(tmp_path)
    assert first.name.rsplit("-", 1)[1] == second.name.rsplit("-", 1)[1] == run_id(tmp_path)
    shown = {key: value for key, value in config(second).items() if key != "_wandb"}
    assert shown == {"run_dir": str(tmp_path), "sample_revision": revision()}
    numbers, picture = history(second)
    assert numbers == {"_step": 0, "sample/fid_1000": 12.5, "trainer/global_step": 4}
    assert (picture["_step"], picture["trainer/global_step"]) == (1, 4)
    assert (picture["sample/quality/_type"], picture["sample/quality/width"]) == ("image-file", 30)
    copied = second / "files" / picture["sample/quality/path"]
    assert copied.read_bytes() == (tmp_path / "quality.png").read_bytes()
    (run,) = [r.run for r in records(second) if r.HasField("run")]
    assert run.resume and not run.display_name and not list(run.tags)  # those of training stay
    assert artifacts(second) == [] and (tmp_path / "metrics.csv").read_bytes() == log


def test_nothing_is_reopened_where_there_was_no_run(keyed, tmp_path):
    assert reopen(tmp_path, {"wandb": {}}) == []
    (tmp_path / "wandb_run_id.txt").write_text("given\n")
    assert reopen(tmp_path, {"wandb": {"enabled": False}}) == reopen(tmp_path, {}) == []
    assert offline_runs(tmp_path) == []


def test_a_run_that_is_still_training_is_left_alone(keyed, tmp_path, capsys):
    """Another process holds it, as training does; when that process is killed the run is free."""
    train(tmp_path, 1, 2)
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
    hold += "print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(tmp_path / "wandb" / ".in_use")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert reopen(tmp_path, {"wandb": {}}) == []
        assert f"W&B's run {run_id(tmp_path)} is still being trained" in capsys.readouterr().out
        other.kill()
    next_second()
    training = build_loggers({"wandb": {}}, tmp_path, {})
    assert lock(tmp_path) is None and reopen(tmp_path, {"wandb": {}}) == []
    finish_loggers(training)
    next_second()
    loggers = reopen(tmp_path, {"wandb": {}})
    assert len(loggers) == 1
    finish_loggers(loggers)
    assert len(offline_runs(tmp_path)) == 3
