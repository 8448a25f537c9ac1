"""Students of a teacher, distilled by each method with the same number of training steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_lab.bench.benchmark import Unavailable
from diffusion_lab.config.command_line import override
from diffusion_lab.config.compose import options
from diffusion_lab.config.origin import program
from diffusion_lab.config.resume import of_teacher, stored_config
from diffusion_lab.output import say
from diffusion_lab.storage.run_directory import find

MOST = 16
"""The largest NFE of a student."""

QUICK = ("callback.evaluation.at_end=false", "callback.samples.every_n_steps=null", "likelihood=none")


@dataclass(frozen=True)
class Method:
    """A way to distil: overrides of train.py in which {teacher} is its checkpoint, and the sampler of the students.

    `evaluations` of the network (of the student, its target and its teacher) are made for an image of a training step.
    Without `overrides`, the method is progressive distillation, whose students have one number of steps each.
    """

    sampler: str
    evaluations: int
    overrides: tuple[str, ...] = ()


CONSISTENCY = "model=consistency", "sampler=consistency"
METHODS: Mapping[str, Method] = {
    "progressive": Method("ddim spacing=trailing", 3),
    "flash": Method("consistency", 33, ("sampler=consistency", "loss=flash", "loss.teacher.ckpt_path={teacher}")),
    "consistency_distillation": Method(
        "consistency", 4, (*CONSISTENCY, "loss=consistency_distillation", "loss.teacher.ckpt_path={teacher}")
    ),
    "consistency_tuning": Method("consistency", 2, (*CONSISTENCY, "loss=consistency_tuning", "init_from={teacher}")),
    "consistency_training": Method("consistency", 2, (*CONSISTENCY, "loss=consistency_training")),
    "consistency_improved": Method("consistency", 2, (*CONSISTENCY, "loss=consistency_improved")),
}
"""Methods by the name of their loss; the last two train without a teacher.  Flash evaluates up to 32 steps of it."""


@dataclass(frozen=True)
class Student:
    """A student's run, the numbers of network evaluations at which it samples, and its sampler."""

    run: Path
    counts: Sequence[int]
    sampler: str


def default_teacher(logs: Path) -> Path:
    """Train EDM on digits, or resume that training; return the run."""
    run = logs / "few_steps" / "teacher"
    train("the teacher", ["model=edm", "data=digits", *QUICK, override("paths.log_dir", str(logs))], run)
    return run


def students(name: str, teacher: Path, steps: int, counts: Sequence[int], place: Path) -> Iterator[Student]:
    """Distil by one method in `steps` training steps altogether; what is trained already is kept.

    Raises:
        Unavailable: if the method does not exist or does not suit the teacher.
    """
    method, counts = METHODS[name], [count for count in counts if count <= MOST]
    if name not in options("loss"):
        raise Unavailable(f"there is no loss={name}")
    place, file = place / f"{name}_{steps}", find(teacher).resolve()
    if not method.overrides:
        yield from progressive(file, steps, counts, place, method.sampler)
        return
    ours = [word.replace("{teacher}", override("", str(file))[1:]) for word in method.overrides]
    flags, words = of_teacher(file.parents[1], [], [*ours, *budget(file, steps)])
    train(name, [*flags, *words], place)
    yield Student(place, counts, method.sampler)


def budget(teacher: Path, steps: int) -> list[str]:
    """Overrides of a training of `steps` steps with the teacher's batch size."""
    batch = stored_config(teacher.parents[1])["data"]["batch_size"]
    return [f"trainer.max_steps={steps}", f"warmup_steps={steps // 10}", f"data.batch_size={batch}", *QUICK]


def progressive(teacher: Path, steps: int, counts: Sequence[int], place: Path, sampler: str) -> Iterator[Student]:
    """The students of progressive distillation, each with an equal share of the training steps."""
    wanted = [count for count in counts if count & (count - 1) == 0]
    if not wanted:
        raise Unavailable("progressive distillation needs an NFE that is a power of 2")
    halvings = [2**k for k in range(max(wanted).bit_length() - 1, -1, -1) if 2**k >= min(wanted)]
    words = [f"steps={','.join(map(str, halvings))}", f"out={place}", *budget(teacher, steps // len(halvings))]
    call("progressive", ["-m", "diffusion_lab.distill", str(teacher), *words], place)
    for count in wanted:
        yield Student(place / f"steps_{count:04d}", [count], sampler)


def train(name: str, words: Sequence[str], run: Path) -> None:
    """Run train.py to the end, from the newest checkpoint if there is one."""
    call(name, [*program("train"), *words, override("hydra.run.dir", str(run)), "ckpt_path=auto"], run)


def call(name: str, words: Sequence[str], run: Path) -> None:
    """Run a command of this package with its output in `<run>.log`.

    Raises:
        Unavailable: with the last line of its output, if it fails.
    """
    log = run.with_name(f"{run.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"trains {name}   -> {os.path.relpath(run)}, output in {os.path.relpath(log)}")
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, *words], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"exit status {code}"]
        raise Unavailable(f"{name}: {lines[-1].removeprefix('error: ')}")
