"""The command `python -m diffusion_lab.distill`: progressive distillation, one training after another."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import override, run_and_keys, split, tidy, with_absolute_directories
from diffusion_lab.config.compose import parsed
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.config.origin import program
from diffusion_lab.config.resume import of_teacher
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import process
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import read_json, write_json
from diffusion_lab.storage.run_directory import CONFIG, RESULTS, find

HELP = """\
Distil a model into one that samples in few steps, by progressive distillation (Salimans & Ho 2022).

  python -m diffusion_lab.distill RUN steps=64,32,16,8,4,2,1 [out=DIRECTORY] [group=option ...] [key=value ...]

RUN is the directory of a run, or a .ckpt file in it.  Each number of steps is a training by train.py: the student
starts from the weights of the model before it, and learns to do in one DDIM step what that model does in two.
  steps=8,4,2,1          sampling steps of the students, each half of the one before
  out=DIRECTORY          where their runs are: DIRECTORY/steps_0008, ...; default: RUN/progressive

The other arguments are those of train.py, for every student; all else is as in the training of RUN.
  trainer.max_steps=1000 optimizer.lr=1e-3 loss.weighting=snr_plus_one

The same command again skips the students that are finished, and resumes the one that was stopped.  RUN should predict
v or x0 (model.output=v): at the largest noise, an error of eps is a large error of the image.
"""

RECORD = "distill.json"
"""File in the output directory: the arguments of the trainings that are finished."""

OF_THE_COMMAND = (
    "ckpt_path", "hydra.run.dir", "init_from", "init_weights", "loss", "loss.steps", "loss.teacher",
    "loss.teacher.ckpt_path", "sampler", "sampler.steps", "sampler.spacing",
)  # fmt: skip
"""Keys of train.py that the command sets itself."""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Distil as the arguments say."""
    run, ours, rest = run_and_keys(arguments, "steps", "out")
    flags, overrides = split(with_absolute_directories(tidy(rest)))
    steps, teacher = halvings(ours.get("steps", "")), find(run).resolve()
    if cluster_ranks()[2] > 1:
        raise ConfigError(
            "start distill without torchrun or srun: each training starts its own ranks (trainer.devices=2)"
        )
    folder = teacher.parents[1]
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds no {CONFIG}, from which the students take their settings: give a run of train.py"
        )
    given = {one.get_key_element(): one for one in parsed(overrides)}
    if taken := next((one for key, one in given.items() if key.lstrip("+~") in OF_THE_COMMAND), None):
        raise ConfigError(f"{taken.input_line}: distill sets this itself, leave it out")
    flags, words = of_teacher(folder, flags, overrides)
    distil(teacher, steps, Path(ours.get("out") or folder / "progressive").resolve(), flags, words)


def halvings(text: str) -> list[int]:
    """The numbers of steps.

    Raises:
        ConfigError: unless each is half of the one before.
    """
    parts = text.strip("[]").split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise ConfigError(f"steps={text} must be numbers of sampling steps, such as steps=8,4,2,1")
    steps = [int(part) for part in parts]
    for before, after in itertools.pairwise(steps):
        if before != 2 * after:
            raise ConfigError(f"steps={text}: {after} must be half of {before}, the number before it")
    return steps


def distil(teacher: Path, steps: Sequence[int], out: Path, flags: Sequence[str], words: Sequence[str]) -> None:
    """Train the students one after another, and compare them.

    Raises:
        ConfigError: if the directory holds other students.
    """
    finished = read_json(out / RECORD)
    for count in steps:
        place = out / f"steps_{count:04d}"
        more = [*words, *of_student(teacher, count)]
        if str(count) in finished:
            if finished[str(count)] != [*flags, *more]:
                raise ConfigError(f"{place} holds a student of other settings: remove {out}, or choose another out=...")
            say(f"{count} steps: finished   {os.path.relpath(place)}")
        else:
            say(f"{count} steps: a student of {os.path.relpath(teacher)}   -> {os.path.relpath(place)}")
            train = [*program("train"), *flags, *more, override("hydra.run.dir", str(place)), "ckpt_path=auto"]
            code, signum = process.run([sys.executable, *train], dict(os.environ), os.getcwd())
            if code or signum:
                sys.exit(128 + signum if signum else code)
            finished[str(count)] = [*flags, *more]
            write_json(out / RECORD, finished)
        teacher = find(place).resolve()
    compare([out / f"steps_{count:04d}" for count in steps], out)


def of_student(teacher: Path, steps: int) -> list[str]:
    """The overrides that distinguish one student."""
    return [
        "loss=progressive", f"loss.steps={steps}", override("loss.teacher.ckpt_path", str(teacher)),
        override("init_from", str(teacher)), "sampler=ddim", f"sampler.steps={steps}",
        "sampler.spacing=${loss.spacing}",
    ]  # fmt: skip


def compare(runs: Sequence[Path], out: Path) -> None:
    """Compare the students that were evaluated."""
    from diffusion_lab.comparison.command import main as comparison

    if evaluated := [str(run) for run in runs if (run / RESULTS).is_file()]:
        comparison([*evaluated, f"out={out}"])
