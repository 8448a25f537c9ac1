"""Kill a random process of a training on two ranks at a random moment, again and again: python tests/kill_ranks.py 20.

After each SIGKILL no process may be left and the exit status may not be 0; the same command must then resume and end
bit-equal to an undisturbed run.  With --restarts, ranks only are killed, and the run itself must recover.  Stages that
are waited for: start, training, saving, evaluating.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from test_rank_failures import ROOT, TINY, gone, started
from test_resume import STATE, assert_bit_equal

STEPS = 60
WORDS = (
    *(str(ROOT / "train.py"), *TINY, f"trainer.max_steps={STEPS}", "trainer.devices=2", "ckpt_path=auto"),
    *("callback.checkpoint.every_n_steps=4", "callback.evaluation.every_n_steps=20", "callback.evaluation.at_end=true"),
    *("callback.evaluation.evaluator.samples=200", "callback.evaluation.evaluator.batch_size=20"),
)
STAGES: dict[str, Callable[[Path], bool]] = {
    "start": lambda run: True,
    "training": lambda run: any(run.glob("checkpoints/*.ckpt")),
    "saving": lambda run: any(run.glob("checkpoints/.*.partial")),
    "evaluating": lambda run: (run / "evaluation").exists(),
}
DELAYS = {"start": 8.0, "training": 2.0, "saving": 0.002, "evaluating": 0.3}
"""Longest time, in seconds, from the first sign of a stage to the kill."""


def state(run: Path) -> dict[str, object]:
    """The last training state of a run that has ended."""
    saved = torch.load(run / "checkpoints" / f"step_{STEPS:08d}.ckpt", weights_only=True)
    return {key: saved[key] for key in STATE}


def train(run: Path, *words: str) -> tuple[int, str]:
    """Train to the end: (exit status, output)."""
    job = started(run.parent, *WORDS, *words, f"hydra.run.dir={run}")
    output = job.communicate(timeout=180)[0]
    return job.returncode, output


def victim(job: subprocess.Popen[str], which: str) -> psutil.Process | None:
    """The agent, "0" or "1" for a rank; None where it is not there."""
    if which == "agent":
        return psutil.Process(job.pid)
    with suppress(psutil.Error):  # one has just ended
        ranks = (child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == which)
        return next(ranks, None)
    return None


def kill(run: Path, stage: str, which: str, delay: float, *words: str) -> tuple[int, str] | None:
    """Start a run and kill a process of it in a stage: (exit status, output); None where it ended before."""
    job = started(run.parent, *WORDS, *words, f"hydra.run.dir={run}")
    while job.poll() is None and not (STAGES[stage](run) and victim(job, which)):
        time.sleep(0.0005 if stage == "saving" else 0.01)
    time.sleep(delay)
    found = victim(job, which) if job.poll() is None else None
    if found is None:
        job.communicate()
        return None
    found.kill()
    begin = time.monotonic()
    output = job.communicate(timeout=180)[0]
    assert gone(run, 30 - min(25.0, time.monotonic() - begin)), f"a process is left of {run}"
    return job.returncode, output


def drill(place: Path, kills: int, seed: int, restarts: bool) -> None:
    """Kill, resume and compare; a line for each kill.

    Raises:
        AssertionError: at the first that is not as it should be.
    """
    chance, done = random.Random(seed), 0
    assert train(place / "undisturbed")[0] == 0
    expected = state(place / "undisturbed")
    while done < kills:
        stage, which = chance.choice([*STAGES]), chance.choice(["0", "1"] if restarts else ["agent", "0", "1"])
        run, delay = place / f"run_{done}", chance.uniform(0, DELAYS[stage])
        begin = time.monotonic()
        ended = kill(run, stage, which, delay, *["trainer.max_restarts=1"] * restarts)
        if ended is None:
            print(f"{stage} was over before the kill; another", flush=True)
            subprocess.run(["rm", "-rf", str(run)], check=True)
            continue
        status, output = ended
        assert (status == 0) == restarts, output
        newest = max((path.name for path in run.glob("checkpoints/*.ckpt")), default="no checkpoint")
        if not restarts:
            again, output = train(run)
            assert again == 0, output
        assert_bit_equal(expected, state(run))
        resumed = next(iter(re.findall("resumes from step [0-9]+", output)), "from the beginning")
        print(
            f"{done + 1}: {stage} + {delay:.3f} s, {'agent' if which == 'agent' else 'rank ' + which}, exit {status}, "
            f"newest {newest}; {resumed}; bit-equal; {time.monotonic() - begin:.0f} s",
            flush=True,
        )
        done += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restarts", action="store_true")
    given = parser.parse_args()
    drill(Path(tempfile.mkdtemp(prefix="kills_")), given.kills, given.seed, given.restarts)
