"""Kill a random process of a training on two ranks at a random moment: python tests/drill_kills.py --seed 0 --count 20.

Not part of the suite, as each trial takes 15 to 25 s.  A trial starts a training of points, alone or as the job of a
sweep, sends SIGKILL to the sweep's process, the agent, rank 0 or rank 1 while it starts, trains, saves or evaluates,
and starts the same command again.  It passes if after the kill no process is left within 30 s, the exit status is not
0, and the second start resumes and ends bit-equal to an undisturbed run.  With --restarts only ranks are killed, and
the first start must recover by itself (trainer.max_restarts=1).  Exit status 1 if a trial fails.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from test_rank_failures import ROOT, TINY, started
from test_resume import STATE, assert_bit_equal

STEPS = 60
TRAIN = (
    *(str(ROOT / "train.py"), *TINY, f"trainer.max_steps={STEPS}", "trainer.devices=2"),
    *("callback.checkpoint.every_n_steps=4", "callback.evaluation.every_n_steps=20", "callback.evaluation.at_end=true"),
    *("callback.evaluation.evaluator.samples=200", "callback.evaluation.evaluator.batch_size=20"),
)
REACHED: dict[str, Callable[[Path], bool]] = {
    "start": lambda run: True,
    "train": lambda run: any(run.glob("checkpoints/*.ckpt")),
    "save": lambda run: any(run.glob("checkpoints/.*.partial")),
    "evaluate": lambda run: (run / "evaluation").exists(),
}
DELAY = {"start": 6.0, "train": 1.5, "save": 0.002, "evaluate": 0.3}
"""Longest time, in seconds, from the first sign of a phase to the kill."""

TAG = "KILL_DRILL"
"""Environment variable by which all processes of a trial are found, whoever started them."""

LIMIT = 30.0


class Trial(NamedTuple):
    """A training of points in `folder`/run, as the job of a sweep if `sweep`."""

    folder: Path
    sweep: bool
    more: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        alone = ("ckpt_path=auto", f"hydra.run.dir={self.run}")
        place = ("-m", f"hydra.sweep.dir={self.folder}", "hydra.sweep.subdir=run") if self.sweep else alone
        return started(self.folder, *TRAIN, *self.more, *place, **{TAG: str(self.folder)})

    def processes(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if environment(one).get(TAG) == str(self.folder)]

    def find(self, job: subprocess.Popen[str], name: str) -> psutil.Process | None:
        """Return "parent" (of a sweep), "agent", "0" or "1" for a rank; None if it does not run."""
        with suppress(psutil.Error):  # a process that ends meanwhile
            first = psutil.Process(job.pid)
            if name == ("parent" if self.sweep else "agent"):
                return first
            agents = first.children() if self.sweep else [first]
            if name == "agent":
                return next(iter(agents), None)
            return next(
                (one for agent in agents for one in agent.children() if environment(one).get("RANK") == name), None
            )
        return None

    def finish(self) -> str:
        """Train to the end and return the output."""
        job = self.start()
        output = job.communicate(timeout=180)[0]
        assert job.returncode == 0, output
        return output

    def state(self) -> dict[str, object]:
        """Return the last state of the training."""
        saved = torch.load(self.run / "checkpoints" / f"step_{STEPS:08d}.ckpt", weights_only=True)
        return {key: saved[key] for key in STATE}


def environment(process: psutil.Process) -> dict[str, str]:
    """Return the environment of a process, empty if it has ended."""
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ()
    return {}


def kill(trial: Trial, phase: str, name: str, delay: float) -> dict[str, object] | None:
    """Start a training, kill a process of it and return what happened; None if the phase was over before the kill."""
    job = trial.start()
    while job.poll() is None and not (REACHED[phase](trial.run) and trial.find(job, name)):
        time.sleep(0.0005 if phase == "save" else 0.01)
    time.sleep(delay)
    found = trial.find(job, name) if job.poll() is None else None
    if found is None:
        job.communicate()
        return None
    found.kill()
    begin = time.monotonic()
    if trial.more:  # restarts
        job.communicate(timeout=180)
    while (left := trial.processes()) and time.monotonic() < begin + LIMIT:
        time.sleep(0.02)
    gone = time.monotonic() - begin
    for one in left:
        one.kill()
    output = job.communicate(timeout=10)[0]
    partial = len([*trial.run.glob("checkpoints/.*.partial")])
    return {"exit": job.returncode, "gone": gone, "orphans": len(left), "unfinished": partial, "output": output}


def judge(trial: Trial, ended: dict[str, object], expected: dict[str, object]) -> tuple[str, str]:
    """Return (step that the second start resumed from, why the trial failed); the latter empty if it passed."""
    output = str(ended["output"])
    if ended["orphans"]:
        return "", f"{ended['orphans']} processes are left after {LIMIT:.0f} s"
    if (ended["exit"] == 0) != bool(trial.more):
        return "", f"exit status {ended['exit']}: {output[-2000:]}"
    try:
        output += "" if trial.more else trial.finish()
        step = next(iter(re.findall(r"resumes from step (\d+)", output)), "0")
        assert_bit_equal(expected, trial.state())
    except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
        return "", f"second start: {error}"
    return step, ""


def drill(place: Path, count: int, seed: int, restarts: bool) -> int:
    """Print a row of a table for each trial; return the number of failed trials."""
    chance, done, failed = random.Random(seed), 0, 0
    undisturbed = Trial(place / "undisturbed", sweep=False)
    undisturbed.finish()
    print("| trial | phase + s | killed | exit | s until all gone | orphans | resumed from | bit-equal | s |")
    print("|---" * 9 + "|", flush=True)
    while done < count:
        phase, name = chance.choice([*REACHED]), chance.choice(["parent", "agent", "0", "1"][2 * restarts :])
        sweep = name == "parent" or (not restarts and chance.random() < 0.5)
        delay = chance.uniform(0, DELAY[phase])
        trial, begin = Trial(place / f"trial_{done}", sweep, ("trainer.max_restarts=1",) * restarts), time.monotonic()
        ended = kill(trial, phase, name, delay)
        if ended is None:  # the phase was over; another trial
            shutil.rmtree(trial.folder)
            continue
        step, why = judge(trial, ended, undisturbed.state())
        done, failed = done + 1, failed + bool(why)
        what = f"{phase} + {delay:.3f}" + ", file unfinished" * bool(ended["unfinished"])
        who = ("rank " * name.isdigit() + name) + " of a sweep" * (sweep and name != "parent")
        print(
            f"| {done} | {what} | {who} | {ended['exit']} | {ended['gone']:.1f} | {ended['orphans']} | {step} | "
            f"{'**no**: ' + why if why else 'yes'} | {time.monotonic() - begin:.0f} |",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restarts", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="kills_") as directory:
        sys.exit(bool(drill(Path(directory), given.count, given.seed, given.restarts)))
