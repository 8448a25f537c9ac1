"""Sweeps: one process group for each job, its command line, what is skipped, gone on with, refused and told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_checkpoint import MODEL
from test_launch_process import NASTY, hydra

from diffusion_lab.config import compose
from diffusion_lab.config.command_line import override
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import job, multirun, process
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

ROOT = Path(__file__).resolve().parents[1]


# --- real runs, few in number: each process takes seconds to start


def run(folder, *words):
    """(exit status, what was said, what each process of training told); no process may be left."""
    (folder / "seen").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "DIFFUSION_LAB_PACKAGES": "sweep_witness",
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=170
    )
    seen = [json.loads(path.read_text()) for path in sorted((folder / "seen").glob("*.json"))]
    for path in (folder / "seen").glob("*.json"):
        assert not psutil.pid_exists(int(path.stem)), "a process of a job is left"
        path.unlink()
    return done.returncode, done.stdout + done.stderr, sorted(seen, key=lambda one: (one["job"], one["rank"]))


def rows(said):
    """The first three columns of the table of jobs."""
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in said.splitlines() if "│" in line]
    return [row for row in cells if row[1].startswith("trainer.devices=")]


def test_jobs_run_once_and_alone_a_failed_one_stops_none_and_the_same_sweep_goes_on(tmp_path):
    folder, text = tmp_path / "a 'b', c=d", NASTY.replace("\\", "")
    (folder / "seen").mkdir(parents=True)
    (folder / "seen" / "fail").touch()
    words = [
        *(str(ROOT / "train.py"), "-m", "data=toy2d", "debug=fast", "trainer.accelerator=cpu", "logger=csv"),
        *("trainer.devices=2,1", "callback.evaluation.evaluator.likelihood_samples=0"),
        "+callback.witness={_target_: sweep_witness.Witness, folder: seen, text: '" + text.replace("'", "\\'") + "'}",
    ]
    code, said, seen = run(folder, *words)
    (sweep,) = (folder / "logs" / "sweep").iterdir()
    jobs = {path.name: path for path in sweep.iterdir() if path.is_dir()}
    assert set(jobs) == {"0", "1"} and not (folder / "logs" / "train").exists(), said
    worlds = [(s["job"], s["rank"], s["world"], s["devices"], s["text"]) for s in seen]
    assert worlds == [("0", 0, 2, 2, text), ("0", 1, 2, 2, text), ("1", 0, 1, 1, text)]
    assert all("-m" not in s["arguments"] and "hydra.mode=RUN" in s["arguments"] for s in seen)
    # The failure of one rank: at once, in the job's directory, in the table, and in the exit status.
    assert code == 1 and rows(said)[1] == ["1", "trainer.devices=1", "finished"]
    assert rows(said)[0] == ["0", "trainer.devices=2", "failed"]
    assert said.count("job 0 failed: rank 1: RuntimeError: I give up") == 1
    assert "results.json     the numbers" not in said and "job 1: finished in " in said, "short, as the table follows"
    assert (jobs["0"] / "error.txt").read_text().startswith("rank 1: RuntimeError: I give up\n\nTraceback")
    assert said.index("job 0: failed: rank 1: RuntimeError: I give up") < said.index("job 1: ")
    assert said.count("Traceback") == 1 and ") failed: RuntimeError: I give up; all ranks are stopped; the last" in said
    assert not (jobs["0"] / "results.json").exists() and not (jobs["1"] / "error.txt").exists()

    (folder / "seen" / "fail").unlink()
    written = (jobs["1"] / "results.json").stat().st_mtime_ns
    code, said, seen = run(folder, *words)
    assert code == 0, said
    assert [(s["job"], s["rank"], s["world"], s["step"]) for s in seen] == [("0", 0, 2, 2), ("0", 1, 2, 2)]
    assert "job 1: skipped, finished" in said and "resumed from step_00000002.ckpt" in said
    assert (jobs["1"] / "results.json").stat().st_mtime_ns == written and not (jobs["0"] / "error.txt").exists()
    assert json.loads((jobs["0"] / "results.json").read_text())["step"] == 4
    assert [row[2] for row in rows(said)] == ["finished", "skipped, finished"]
    assert "</html>" in (jobs["0"] / "report.html").read_text(), "of two ranks"
    assert "job 0 finished: resumed from step_00000002.ckpt" in said
    assert (
        "skipped, finished" in (sweep / "report.html").read_text()
        and "devices=2" in (sweep / "comparison.md").read_text()
    )


def test_samples_are_drawn_by_the_ranks_of_each_job_into_its_directory(tmp_path):
    torch.manual_seed(0)
    config = {"model": MODEL, "choices": {"sampler": "ddim"}}
    state = {"state_dict": instantiate(MODEL, "model").state_dict(), "global_step": 7, "config": config}
    path = tmp_path / "my, run" / "checkpoints" / "step_00000007.ckpt"
    AtomicCheckpointIO().save_checkpoint(state, path)
    code, said, _ = run(
        tmp_path, str(ROOT / "sample.py"), "-m", "ckpt_path='my, run'", "weights=raw", "trainer.accelerator=cpu",
        "trainer.devices=2", "num_samples=6", "batch_size=2",
    )  # fmt: skip
    assert code == 0, said
    assert said.count("sampling 6 from") == 1 and "on 2 x cpu" in said
    (made,) = (tmp_path / "logs" / "sweep").glob("*/0/samples.npz")
    assert np.load(made)["arr_0"].shape == (6, 2) and (made.parent / "request.json").exists()
    assert not (tmp_path / "logs" / "sample").exists()


# --- what a sweep is called, and what is refused


def test_equal_commands_are_one_sweep():
    first = multirun.name(["-m", "schedule=linear,cosine", "seed=range(1,3)", "data.name='x y'"])
    assert first.startswith("schedule-linear-cosine-seed-range-1-3_")
    assert first == multirun.name(["-m", "schedule=linear,cosine", "seed=range(1,3)", "data.name='x y'"])
    assert first != multirun.name(["-m", "schedule=linear,cosine", "seed=range(1,3)", "data.name='x z'"])
    assert multirun.name(["-m", "hydra/sweeper=optuna", "a=1,2"]).startswith(time.strftime("%Y-"))


def test_optimised_ranges_and_globs_are_checked_by_what_they_may_become():
    parse = OverridesParser.create().parse_overrides
    assert list(compose._jobs(parse(["optimizer.lr=interval(0.1,1)"]))) == [["optimizer.lr=0.1"], ["optimizer.lr=1.0"]]
    names = {job[0] for job in compose._jobs(parse(["schedule=glob(*,exclude=[geo*])"]))}
    assert names >= {"schedule=linear", "schedule=cosine"} and "schedule=geometric" not in names


@pytest.mark.parametrize(
    "starter, environment",
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}),
        ("srun", {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}),
    ],
)
def test_ranks_from_outside_must_come_to_the_same_jobs(monkeypatch, starter, environment):
    for key in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(key, raising=False)
    optuna, joblib = {"_target_": "x.OptunaSweeper"}, {"_target_": "x.JoblibLauncher"}
    shuffled = {"task": ["a=shuffle(1,2)"], "hydra": []}
    assert cluster_ranks() == ("", 0, 1)
    for changes in ({}, {"launcher": joblib}, {"overrides": shuffled}):
        multirun.check(hydra(**changes), None)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert cluster_ranks() == (starter, 1, 2)
    multirun.check(hydra(), None)
    for changes in ({"sweeper": optuna}, {"launcher": joblib}, {"overrides": shuffled}):
        with pytest.raises(ConfigError, match=f"under {starter}.*other jobs on each of the 2 ranks"):
            multirun.check(hydra(**changes), "fid")
    # Each job meets at a port of its own, kept by its own first rank.
    monkeypatch.setenv("MASTER_PORT", "1000")
    ports = [job.environment(Path("/sweep/0"), number)["MASTER_PORT"] for number in (0, 1)]
    assert ports == ["1001", "1002"]
    assert job.environment(Path("/sweep/0"), 0)["TORCHELASTIC_USE_AGENT_STORE"] == "False"


def test_an_optimiser_needs_a_number(monkeypatch):
    with pytest.raises(ConfigError, match="optimized_metric"):
        multirun.check(hydra(sweeper={"_target_": "x.OptunaSweeper"}), None)


# --- one job


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """`launch(config, number)` runs a job whose process is only written down; `launch.end` is what it does."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    started = []

    def run(words, environment, cwd):
        started.append((words, environment))
        return launch.end(Path(environment[job.JOB]))

    def launch(config, number=0, own=(), **more):
        directory = tmp_path / "sweep" / str(number)
        directory.mkdir(parents=True, exist_ok=True)
        node = hydra(
            runtime={"output_dir": str(directory), "cwd": str(tmp_path)},
            job={"num": number},
            sweep={"dir": "sweep"},
            overrides={"task": [f"{k}={v}" for k, v in config.items()]},
        )
        monkeypatch.setattr(job.HydraConfig, "get", staticmethod(lambda: node))
        return job.run_job(["train"], OmegaConf.create({**config, **more}), own)

    launch.end, launch.started, launch.sweep = lambda directory: (0, None), started, tmp_path / "sweep"
    monkeypatch.setattr(process, "run", run)
    return launch


def statuses(sweep):
    return [json.loads(line)["status"] for line in (sweep / job.LOG).read_text().splitlines()]


def test_only_what_is_finished_is_skipped(launched, capsys):
    before = dict(os.environ)
    launched({"a": 1})
    launched({"a": 1})
    assert statuses(launched.sweep) == ["finished", "skipped, finished"] and len(launched.started) == 1
    launched.end = lambda directory: (1, None)
    launched({"a": 2}, 1)
    launched({"a": 2}, 1)
    assert len(launched.started) == 3 and "started again: it had no checkpoint" in capsys.readouterr().out
    (launched.sweep / "1" / "checkpoints").mkdir()
    (launched.sweep / "1" / "checkpoints" / "step_00000002.ckpt").touch()
    launched({"a": 2}, 1)
    assert override("ckpt_path", str(launched.sweep / "1")) in launched.started[-1][0]
    assert "resumed from step_00000002.ckpt" in capsys.readouterr().out
    assert "ckpt_path" not in " ".join(launched.started[0][0])
    assert statuses(launched.sweep)[2:] == ["failed"] * 3
    assert dict(os.environ) == before


def test_another_job_in_the_directory_is_left_alone(launched, capsys):
    launched({"a": 1})
    words = launched.sweep / "0" / ".hydra" / "overrides.yaml"
    words.parent.mkdir()
    words.write_text("- a=2\n")  # as Hydra does before it asks us
    record = (launched.sweep / "0" / job.RECORD).read_bytes()
    launched({"a": 2})
    launched({"a": 1}, b=3)  # equal words, but the files of conf/ have changed
    assert statuses(launched.sweep) == ["finished", "refused", "refused"] and len(launched.started) == 1
    assert (launched.sweep / "0" / job.RECORD).read_bytes() == record and words.read_text() == "- a=1\n"
    said = capsys.readouterr().err
    assert "sweep/0 holds another job (a=1): " in said and "(a=1 with other defaults): " in said


def test_a_job_that_another_sweep_works_on_is_left_to_it(launched, capsys):
    def twice(directory):
        launched.end = lambda directory: pytest.fail("started twice")
        launched({"a": 1})
        return 0, None

    launched.end = twice
    launched({"a": 1})
    assert statuses(launched.sweep) == ["refused", "finished"]
    assert f"process {os.getpid()} already runs in it" in capsys.readouterr().err


def test_the_optimised_number_is_that_of_the_results(launched):
    def end(directory):
        (directory / "results.json").write_text(json.dumps({"metrics": {"fid_50k": {"value": 3.25}}}))
        return 0, None

    launched.end = end
    assert launched({"a": 1}, optimized_metric="fid_50k") == 3.25
    assert launched({"a": 1}, optimized_metric="fid_50k") == 3.25  # skipped
    assert launched({"a": 2}, 1, optimized_metric=None) is None
    with pytest.raises(RuntimeError, match=r"optimized_metric=fid: no such metric \(did you mean fid_50k\?\)"):
        launched({"a": 3}, 2, optimized_metric="fid")
    launched.end = lambda directory: (137, None)
    with pytest.raises(RuntimeError, match="job 3 failed: killed by SIGKILL"):
        launched({"a": 4}, 3, optimized_metric="fid_50k")


def test_a_signal_stops_the_sweep_after_its_job(launched):
    launched.end = lambda directory: (1, signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        launched({"a": 1})
    assert statuses(launched.sweep) == ["stopped by SIGTERM"]
    launched.end = lambda directory: (0, None)
    launched({"a": 1})
    assert statuses(launched.sweep)[1] == "finished"


def test_each_job_has_its_own_run_of_wandb(launched, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromenv")

    def end(directory):
        (directory / job.WANDB_ID).write_text("asked\n" if directory.name == "0" else "fromenv\n")
        return 1, None

    launched.end = end
    for number in (0, 1, 2, 0):
        launched({"a": number}, number, logger={"wandb": {"id": "asked"}})
    found = [("logger.wandb.id=null" in words, env.get("WANDB_RUN_ID")) for words, env in launched.started]
    assert found == [(False, "fromenv"), (True, "fromenv"), (True, None), (False, None)]


def test_seeds_end_in_mean_and_spread(launched, capsys):
    def end(directory):
        value = {"value": float(directory.name), "better": "lower", "protocol": {"samples": 5}}
        results = {"model": "ddpm", "data": "digits", "seed": int(directory.name), "metrics": {"fd": value}}
        (directory / "results.json").write_text(json.dumps(results))
        return 0, None

    launched.end = end
    since = time.time()
    for number in (1, 2, 3):
        launched({"seed": number, "schedule": "linear"}, number)
    assert multirun.conclude(launched.sweep, since) is True
    assert "2.000 ± 1" in (launched.sweep / "comparison.md").read_text()
    assert "2.000 ± 1" in (launched.sweep / "report.html").read_text()
    launched.end = lambda directory: (2, None)
    launched({"seed": 4}, 4)
    capsys.readouterr()
    assert multirun.conclude(launched.sweep, since) is False
    lines = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if "│ seed=" in line]
    assert [[cell.strip() for cell in line] for line in lines[:4]] == [
        *([str(n), f"seed={n} schedule=linear", "finished"] for n in (1, 2, 3)),
        ["4", "seed=4", "refused"],
    ]
    assert multirun.conclude(launched.sweep, time.time()) is True  # jobs of an earlier sweep are not this one's
