"""One rank of several fails or hangs: all are gone soon, the failing one is named, and the run goes on where it was."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_launch_process import commands
from test_resume import STATE, assert_bit_equal
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from diffusion_lab.config import origin
from diffusion_lab.launch import agent

ROOT = Path(__file__).resolve().parents[1]
TOLD = {
    "kill": "was killed by SIGKILL (out of memory?)",
    "busy": "was killed by SIGKILL (out of memory?)",
    "stop": "did not answer within trainer.timeout, it is stopped",
    "loop": "did not answer within trainer.timeout",
    "raise": "failed: ValueError: I give up",
    "refuse": "there is no such thing: use another",
    "import": "failed: ModuleNotFoundError: No module named 'no_such_module'",
}


def started(folder: Path, *words: str, stdin: int | None = None, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "DIFFUSION_LAB_PACKAGES": "sweep_witness", **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def gone(folder: Path, seconds: float) -> bool:
    """Whether all processes that have to do with a folder end within some seconds."""
    end = time.monotonic() + seconds
    while any(str(folder) in command for command in commands()):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


CASES = [
    *(("stop", 1, 1), ("stop", 0, 1), ("loop", 1, 1), ("kill", 1, 137), ("kill", 0, 137), ("busy", 1, 137)),
    *(("raise", 1, 1), ("raise", 0, 1), ("refuse", 1, 2), ("import", 1, 1)),
    *(("refuse", 0, 2), ("agent", 1, -9), ("none", -1, 0), ("told", -1, 143)),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{(fault, rank): (folder, exit status, what was said, seconds from the fault on)} of all cases, three at a time: most of it is waiting."""

    place = tmp_path_factory.mktemp("ranks")
    agents = started(place, str(ROOT / "tests" / "rank_job.py"), "serve", stdin=subprocess.PIPE)

    def run(fault, rank, _):
        folder = place / f"{fault}_{rank}"
        (folder / "checkpoints").mkdir(parents=True)
        for step in (8, 16):
            (folder / "checkpoints" / f"step_{step:08d}.ckpt").touch()
        agents.stdin.write(f"{folder} {fault} {rank}\n")
        agents.stdin.flush()
        end = time.monotonic() + 90
        while not (folder / "status").exists():
            assert time.monotonic() < end and agents.poll() is None, f"{fault} {rank} has not ended"
            time.sleep(0.02)
        code, said = int((folder / "status").read_text()), (folder / "said").read_text()
        assert gone(folder, 5), f"a process of {fault} {rank} is left"
        seconds = time.time() - float((folder / "fault").read_text()) if (folder / "fault").exists() else 0.0
        return (fault, rank), (folder, code, said, seconds)

    with ThreadPoolExecutor(3) as pool:
        found = dict(pool.map(lambda case: run(*case), CASES))
    assert agents.communicate(timeout=30)[0] == "" and agents.returncode == 0
    return found


@pytest.mark.parametrize("fault, rank, status", CASES[:-4])
def test_all_ranks_end_and_one_line_names_the_one_that_failed(ended, fault, rank, status):
    folder, code, said, seconds = ended[fault, rank]
    assert code == status and seconds < 25, said
    last = said.splitlines()[-1]
    assert last.startswith(f"rank {rank} (process "), said
    resume = f"resume:  {origin.command('train', folder)}"
    assert f") {TOLD[fault]}; all ranks are stopped; the last checkpoint is of step 16; {resume}" in last
    assert said.count("Traceback") == (fault in ("raise", "import")), said


def test_what_the_first_rank_refuses_is_said_as_without_ranks(ended):
    _, code, said, _ = ended["refuse", 0]
    assert (code, said) == (2, "error: there is no such thing: use another\n")


def test_no_rank_outlives_its_agent(ended):
    """The fixture has seen that all of them were gone five seconds after it."""
    _, code, said, _ = ended["agent", 1]
    assert code == -9 and "Traceback" not in said


@pytest.mark.parametrize("end, rank, status", CASES[-2:])
def test_a_deliberate_end_is_no_failure(ended, end, rank, status):
    folder, code, said, _ = ended[end, rank]
    assert (code, said) == (status, "")
    assert (folder / "late").exists() == (end == "none")


def test_ranks_leave_their_group_before_they_exit(ended):
    """A thread of gloo that is left at exit now and then aborts the process (SIGABRT, terminate called)."""
    assert {path.name for path in ended["none", -1][0].glob("left_*")} == {"left_0", "left_1"}


def test_ranks_that_were_stopped_or_refused_are_not_restarted(ended):
    for case in (("told", -1), ("refuse", 0), ("refuse", 1)):
        assert [path.name for path in ended[case][0].glob("round_*")] == ["round_0"]


@pytest.mark.parametrize(
    "error, message",
    [
        (RendezvousClosedError, "another node has ended, its output says why"),
        (RendezvousTimeoutError, "not all nodes came within trainer.timeout: check trainer.num_nodes on each"),
        (RendezvousConnectionError, "no connection to trainer.rdzv_endpoint, or the node there has ended"),
    ],
)
def test_an_agent_without_the_others_says_so(error, message, tmp_path, capsys):
    assert agent.report_lost_nodes(error(), [], tmp_path, "train") == 1
    assert capsys.readouterr().err.startswith(f"error: {message}; ")
    assert agent.report_lost_nodes(error(), [15], tmp_path, "train") == 143 and not capsys.readouterr().err


TINY = (
    *("data=toy2d", "network=mlp", "logger=csv", "debug=fast", "trainer.accelerator=cpu", "trainer.max_steps=8"),
    *("trainer.val_check_interval=null", "callback.samples.every_n_steps=null", "callback.evaluation.at_end=false"),
    *("+callback.witness._target_=sweep_witness.Witness", "+callback.witness.folder=${paths.run_dir}"),
)
"""A training of a second."""


WORDS = (str(ROOT / "train.py"), *TINY, "trainer.devices=2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The directory of a training on two ranks."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = started(run.parent, *WORDS, f"hydra.run.dir={run}")
    said = job.communicate(timeout=90)[0]
    assert job.returncode == 0 and len(losses(run)) == 8, said
    return run


def assert_same_end(run: Path, expected: Path) -> None:
    states = [torch.load(one / "checkpoints" / "step_00000008.ckpt", weights_only=True) for one in (run, expected)]
    assert_bit_equal(*({key: state[key] for key in STATE} for state in states))
    assert losses(run) == losses(expected)


def with_a_kill(run: Path) -> Path:
    """A run directory in which rank 1 will be killed after step 5."""
    run.mkdir()
    (run / "kill").touch()
    return run


def test_a_killed_rank_ends_the_training_which_goes_on_bit_equal(undisturbed, tmp_path):
    run = with_a_kill(tmp_path / "part")
    job = started(tmp_path, *WORDS, f"hydra.run.dir={run}")
    said = job.communicate(timeout=90)[0]
    assert job.returncode == 137 and gone(run, 5) and "Traceback" not in said, said
    assert "was killed by SIGKILL (out of memory?); all ranks are stopped; the last checkpoint is of step 4" in said
    assert "SIGTERM" not in said, "torchelastic's signal is taken for the user's"
    assert said.rstrip().endswith(f"resume:  {origin.command('train', run)}")
    job = started(tmp_path, str(ROOT / "train.py"), "ckpt_path=part")
    assert job.communicate(timeout=90) and job.returncode == 0 and gone(tmp_path, 5)
    assert_same_end(run, undisturbed)


def test_ranks_restart_bit_equal_after_one_was_killed(undisturbed, tmp_path):
    run = with_a_kill(tmp_path / "run")
    job = started(tmp_path, *WORDS, f"hydra.run.dir={run}", "trainer.max_restarts=1")
    said = job.communicate(timeout=90)[0]
    assert job.returncode == 0 and "resumes from step 4" in said and gone(run, 5), said
    assert_same_end(run, undisturbed)


def test_two_nodes_are_one_run_and_end_together(undisturbed, tmp_path):
    """Two agents on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"trainer.rdzv_endpoint=localhost:{free.getsockname()[1]}"
    words = (*WORDS[:-1], "trainer.devices=1", "trainer.num_nodes=2", endpoint)
    run = with_a_kill(tmp_path / "run")

    def both(*more: str) -> dict[int, str]:
        jobs = [started(tmp_path, *words, f"hydra.run.dir={run}", *more) for _ in "12"]
        said = [job.communicate(timeout=90)[0] for job in jobs]
        assert gone(run, 5)
        return {job.returncode: text for job, text in zip(jobs, said, strict=True)}

    ended = both()
    assert sorted(ended) == [1, 137], ended
    assert ") was killed by SIGKILL (out of memory?); all ranks are stopped; the last checkpoint is of" in ended[137]
    assert re.search(r"\) lost contact with another rank \([\w ]+\), see the output of the other nodes; ", ended[1])
    ended = both(f"ckpt_path={run}")
    assert [*ended] == [0], ended
    assert_same_end(run, undisturbed)


def test_ranks_that_evaluate_stop_at_once_also_the_one_that_waits(tmp_path):
    """Three chunks on two ranks: the last is still drawn when the other rank has nothing left to do."""
    slow = ("callback.evaluation.every_n_steps=4", "callback.evaluation.max_seconds=null", "likelihood=none")
    size = ("callback.evaluation.evaluator.samples=1500", "callback.evaluation.evaluator.batch_size=500")
    words = (*TINY, *slow, *size, "sampler_steps=1000", "callback.checkpoint.every_n_steps=100", "trainer.devices=2")
    job = started(tmp_path, str(ROOT / "train.py"), *words, "hydra.run.dir=run")
    while not (tmp_path / "run" / "evaluation").exists() and job.poll() is None:
        time.sleep(0.05)
    start = time.monotonic()
    job.terminate()
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 143 and time.monotonic() - start < 10 and gone(tmp_path, 5), said
    go_on = origin.command("train", tmp_path / "run")
    assert f"stopped by SIGTERM at step 4; resume:  {go_on}\n" in said and "Traceback" not in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004.ckpt"]
    assert not list((tmp_path / "run").glob(".stop*"))


def losses(run: Path) -> list[tuple[str, str]]:
    """(step, loss) of every row of a run's log."""
    with (run / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]
