"""From a command line to a run: the only part, with checkpoint.py, that knows Hydra's configuration."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from diffusion_lab.file_lock import has_locks
from diffusion_lab.launch.imports import quick_imports
from diffusion_lab.launch.instantiate import FURTHER, PATH, ConfigError, instantiate
from diffusion_lab.output import tolerant

__all__ = ["ConfigError", "instantiate", "main"]

INFORMATION = {"--hydra-help", "--version", "--shell-completion", "-sc"}


def main(task: Literal["train", "sample"]) -> None:
    """Run `train.py` or `sample.py`: check the whole command line first, then let Hydra start each job.

    Exits with status 2 and one line on standard error if the command line or the set-up is refused.
    """
    tolerant()
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from diffusion_lab.launch import multirun, process, watch
    from diffusion_lab.launch.hydra_part import refused_by_hydra
    from diffusion_lab.launch.job import run_job
    from diffusion_lab.launch.places import CONF

    if not has_locks():
        refuse(ConfigError(f"{task}.py runs on Linux and macOS only; on Windows, use WSL"))
    watch.born()
    if os.environ.get(FURTHER):
        os.environ.setdefault(PATH, os.getcwd())
    words = sys.argv[1:] = checked(task, sys.argv[1:])
    start = process.program(words)
    if process.outside()[1] > 0:
        sys.argv.append("hydra.output_subdir=null")  # the first rank writes it

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=task)
    def job(config: Any) -> float | None:
        at_work.append(task)
        metric = None
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            metric = run_job(start, config, own=["out"] if task == "sample" and config.out is None else [])
        else:
            try:
                work(task, config, Path(HydraConfig.get().runtime.output_dir), start)
            except ConfigError as error:
                refuse(error)
        at_work.clear()
        return metric

    try:
        with multirun.sweeping(words), refused_by_hydra(words, refuse) as at_work:
            job()
    finally:
        watch.last_line()


def checked(task: Literal["train", "sample"], words: list[str]) -> list[str]:
    """The command line with all that it means told, once it is known to be right; refused otherwise."""
    from diffusion_lab.launch import help, outside, process
    from diffusion_lab.launch.command_line import tidy
    from diffusion_lab.launch.compose import check, check_shown
    from diffusion_lab.launch.job import JOB, witnessed
    from diffusion_lab.launch.refusals import without_nulls
    from diffusion_lab.launch.resume import go_on, sampled

    try:
        if {"--help", "-h"} & {*words}:
            print(help.tell(task, words))
            sys.exit()
        words = without_nulls(tidy(words))
        outside.agree(words)
        # The first rank has checked for the others.
        informs = INFORMATION & {word.partition("=")[0] for word in words}
        if informs or process.of_another_rank():
            return words
        with witnessed():
            words = process.settled(words)
            if task == "sample":
                words = sampled(words)
            elif JOB not in os.environ:
                words = go_on(words)
            given = process.arguments(words)
            name, only = given.config_name or task, given.cfg is not None or given.info is not None
            check(name, given.overrides, only_words=only, sweep=given.multirun, main=given.config_path)
            if given.cfg is not None:
                check_shown(name, given.overrides, given.package, given.resolve, given.config_path)
    except ConfigError as error:
        if process.outside()[1] > 0:  # the first rank says it, unless torchrun ends it because this one has ended
            time.sleep(3)
            sys.exit(2)
        refuse(error)
    return words


def only_overrides(words: list[str], module: str) -> list[str]:
    """The overrides of a command that knows no other flag than --config-dir.

    Raises:
        ConfigError: for another one.
    """
    from diffusion_lab.launch import process
    from diffusion_lab.launch.command_line import tidy

    settled = process.settled(tidy(words))
    flags = [word for word in settled if word.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]} is no option here: see python -m diffusion_lab.{module} --help")
    return settled


def work(task: Literal["train", "sample"], config: Any, run_dir: Path, start: list[str]) -> None:
    """Train or sample, with the other ranks of this job, each watched."""
    from diffusion_lab.launch import process, watch
    from diffusion_lab.launch.job import witnessed
    from diffusion_lab.launch.typed import convert

    # Imported here: torch and Lightning take seconds, and --help must not.
    with quick_imports():
        if task == "train":
            from diffusion_lab.launch.train import train as run
        else:
            from diffusion_lab.launch.sample import sample as run
    convert(config)
    with witnessed(), watch.watched(run_dir, task) as others, process.ranks_of_this_job(start, others.guard):
        run(config)


def refuse(error: Exception) -> None:
    """Say in one line what is wrong, and exit with status 2, or 1 if it came up while the run was on its way.

    HYDRA_FULL_ERROR=1 shows where it came from.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    then = getattr(error, "then", "")
    print(f"error: {error}{then and '; '}{then}", file=sys.stderr)
    sys.exit(getattr(error, "status", 2))
