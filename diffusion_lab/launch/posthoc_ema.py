"""The command `python -m diffusion_lab.ema`: EMA weights of any profile after the training, and their scores."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import override, run_and_keys, tidy
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.config.origin import program
from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say
from diffusion_lab.ranges import RelativeStd, mismatch
from diffusion_lab.storage.run_directory import find, is_complete

HELP = """\
Make the EMA weights of any power-function profile after the training (post-hoc EMA; Karras et al. 2024).

  python -m diffusion_lab.ema RUN std=STD[,STD...] [out=DIRECTORY] [evaluate=true [key=value ...]]

RUN is a run's directory or a .ckpt file of it, trained with callback.posthoc_ema.every_n_steps=N.
  std=0.05               relative standard deviation of the profile, in (0, 0.2887]: 0.05 averages about the last 5 %
                         of the training; std=0.02,0.05,0.1 makes several
  out=DIRECTORY          where the checkpoints are written; default: RUN/ema
  evaluate=true          samples from each and scores the samples, as sample.py does, with the other arguments:
                         num_samples=1000 sampler=ddim sampler.steps=20 ...; draws the distance against std

Each checkpoint can be given to sample.py as ckpt_path, to diffusion_lab.load, and to train.py as init_from.
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Make and score averages as the arguments say."""
    run, given, overrides = run_and_keys(arguments, "std", "out")
    stds, path = numbers(given.get("std", "")), find(run)
    if not is_complete(path, b"posthoc_averages"):
        raise ConfigError(
            f"{path} holds no power-function averages: train with callback.posthoc_ema.every_n_steps=N, where N is "
            "about 1 % of the training"
        )
    scored = "evaluate=true" in overrides
    if overrides and not scored:
        raise ConfigError(f"{overrides[0]} has an effect only with evaluate=true")
    if scored:
        from diffusion_lab.config.compose import check

        check("sample", tidy([*overrides, override("ckpt_path", str(path))]))
    # Imported here: torch takes seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.run.posthoc_ema import reconstruct

    written = reconstruct(path, stds, Path(given["out"]) if "out" in given else None)
    if scored:
        evaluate(dict(zip(stds, written, strict=True)), overrides)


def numbers(text: str) -> list[float]:
    """The relative standard deviations of std=...

    Raises:
        ConfigError: for something that is none.
    """
    try:
        stds = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise ConfigError(f"std={text} must be a number, or several as std=0.02,0.05,0.1") from None
    for std in stds:
        if reason := mismatch(RelativeStd, std):
            raise ConfigError(f"std={std:g} {reason}, which is that of the uniform average")
    return list(dict.fromkeys(stds))


def evaluate(checkpoints: dict[float, Path], overrides: Sequence[str]) -> None:
    """Score each checkpoint by a sweep of sample.py, and draw the first metric against std."""
    from diffusion_lab.launch import multirun, process

    folder = next(iter(checkpoints.values())).parent
    files = ",".join(override("", str(path))[1:] for path in checkpoints.values())
    words = tidy(["-m", f"ckpt_path={files}", *overrides])
    place = folder / f"evaluation_{multirun.name(words).rpartition('_')[2]}"
    sweep = [sys.executable, *program("sample"), *words, override("hydra.sweep.dir", str(place))]
    code, _ = process.run(sweep, dict(os.environ), os.getcwd())
    if code:
        sys.exit(code)
    draw(checkpoints, place)


def draw(checkpoints: dict[float, Path], place: Path) -> None:
    """Draw the first metric of a sweep's results against std, in distance_by_std.png."""
    from diffusion_lab.plot.charts import curves

    results = [json.loads(path.read_text(encoding="utf-8")) for path in place.glob("*/results.json")]
    by_file = {result["checkpoint"]: result["metrics"] for result in results}
    points = [(std, by_file[str(path)]) for std, path in checkpoints.items() if str(path) in by_file]
    metric, first = next(iter(points[0][1].items()))
    line = {metric: [(std, metrics[metric]["value"]) for std, metrics in points]}
    curves(line, place / "distance_by_std.png", "relative std of the EMA profile", metric, first.get("real"))
    best, value = min(line[metric], key=lambda point: point[1])
    say(f"lowest {metric}: {value:.4g} at std={best:g}")
    say(f"written to {os.path.relpath(place)}: distance_by_std.png")
