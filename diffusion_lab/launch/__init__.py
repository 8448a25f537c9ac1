"""From a command line to a run: the only part, with checkpoint.py, that knows Hydra's configuration."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffusion_lab.config.command_line import parse, with_absolute_directories
from diffusion_lab.config.environment import AGENT, cluster_ranks
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.config.instantiate import FURTHER, PATH, instantiate
from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.launch.leftover import remove_leftover
from diffusion_lab.output import tolerant

__all__ = ["ConfigError", "instantiate", "main"]

INFORMATION = {"--hydra-help", "--version", "--shell-completion"}


def main(task: Literal["train", "sample"]) -> None:
    """Run `train.py` or `sample.py`: check the whole command line first, then let Hydra start each job.

    Exits with status 2 and one line on standard error if the command line or the set-up is refused.
    """
    tolerant()
    if not hasattr(signal, "SIGHUP"):  # Windows, where signals and process groups of jobs and ranks work differently
        refuse(ConfigError(f"{task}.py runs on Linux and macOS only; on Windows, use WSL"))
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from diffusion_lab.config.directories import CONF
    from diffusion_lab.config.hydra_part import refuse_failure
    from diffusion_lab.launch import multirun, process, rank
    from diffusion_lab.launch.job import run_job
    from diffusion_lab.monkeypatches import failures_of_hydra

    rank.born()
    if os.environ.get(FURTHER):
        os.environ.setdefault(PATH, os.getcwd())
    words = sys.argv[1:] = checked(task, sys.argv[1:])
    start = process.program(words)
    if cluster_ranks()[1] > 0:
        sys.argv.append("hydra.output_subdir=null")  # the first rank writes it

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=task)
    def job(config: Any) -> float | None:
        at_work.append(task)
        metric = None
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            metric = run_job(start, config, own=["out"] if task == "sample" and config.out is None else [])
        else:
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            try:
                work(task, config, run_dir, start)
            except ConfigError as error:
                if error.status == 2 and cluster_ranks()[1] == 0:
                    remove_leftover(run_dir, Path(config.paths.log_dir))
                refuse(error)
        at_work.clear()
        return metric

    try:
        with multirun.sweeping(words), failures_of_hydra(partial(refuse_failure, words)) as at_work:
            job()
    except ConfigError as error:
        refuse(error)
    finally:
        rank.last_line()


def checked(task: Literal["train", "sample"], words: list[str]) -> list[str]:
    """The command line with everything that it implies, checked; refused otherwise."""
    from diffusion_lab.config import help
    from diffusion_lab.config.command_line import tidy
    from diffusion_lab.config.compose import check, check_shown
    from diffusion_lab.config.refusals import without_nulls
    from diffusion_lab.config.resume import sampling_arguments, training_arguments
    from diffusion_lab.launch import cluster
    from diffusion_lab.launch.job import JOB, witnessed

    try:
        if {"--help", "-h"} & {*words}:
            print(help.help_text(task, words))
            sys.exit()
        words = without_nulls(tidy(words))
        cluster.agree(words)
        if INFORMATION & {*words} or AGENT in os.environ:  # which has checked for its ranks
            return words
        with witnessed():
            words = with_absolute_directories(words)
            if task == "sample":
                words = sampling_arguments(words)
            elif JOB not in os.environ:
                words = training_arguments(words)
            given = parse(words)
            name, only = given.config_name or task, given.cfg is not None or given.info is not None
            check(name, given.overrides, only_names=only, sweep=given.multirun, main=given.config_path)
            if given.cfg is not None:
                check_shown(name, given.overrides, given.package, given.resolve, given.config_path)
    except ConfigError as error:
        if cluster_ranks()[1] > 0:  # the first rank says it, unless torchrun ends it because this one has ended
            time.sleep(3)
            sys.exit(2)
        refuse(error)
    return words


def work(task: Literal["train", "sample"], config: Any, run_dir: Path, start: list[str]) -> None:
    """Train or sample, here or as several ranks."""
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lab.config.typed import convert
    from diffusion_lab.launch import agent, multirun, process, rank
    from diffusion_lab.launch.job import witnessed

    if ranks := agent.wanted(config.trainer):
        if (config.trainer.num_nodes or 1) > 1 and multirun.named_by_the_clock(HydraConfig.get().run):
            raise ConfigError(
                f"trainer.num_nodes={config.trainer.num_nodes}: add hydra.run.dir=DIR, equal on each node"
            )
        with witnessed():
            sys.exit(agent.run(process.command(start, HydraConfig.get()), config.trainer, ranks, run_dir, task))
    # Imported here: torch and Lightning take seconds, and --help must not.
    with quick_imports():
        if task == "train":
            from diffusion_lab.run.train import train as run
        else:
            from diffusion_lab.run.sample import sample as run
    convert(config)
    with witnessed(), rank.working(run_dir, task):
        run(config)
