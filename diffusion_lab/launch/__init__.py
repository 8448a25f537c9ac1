"""From a command line to a run: check it, then train or sample here, as several ranks, or as jobs of a sweep."""

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
from diffusion_lab.memory import keep_freed_memory
from diffusion_lab.output import tolerant
from diffusion_lab.storage.run_directory import remove_leftover

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

    rank.die_with_agent()
    if os.environ.get(FURTHER):
        os.environ.setdefault(PATH, os.getcwd())
    arguments = sys.argv[1:] = checked(task, sys.argv[1:])
    start = process.program(arguments)
    if cluster_ranks()[1] > 0:
        sys.argv.append("hydra.output_subdir=null")  # rank 0 writes it

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=task)
    def job(config: Any) -> float | None:
        at_work.append(task)
        metric = None
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            metric = run_job(start, config, directory_keys=["out"] if task == "sample" and config.out is None else [])
        else:
            run_single(task, config, start)
        at_work.clear()
        return metric

    try:
        with multirun.sweeping(arguments), failures_of_hydra(partial(refuse_failure, arguments)) as at_work:
            job()
    except ConfigError as error:
        refuse(error)
    finally:
        rank.print_last_line()


def run_single(task: Literal["train", "sample"], config: Any, start: list[str]) -> None:
    """Train or sample outside of a sweep; a refused run leaves no directory."""
    from hydra.core.hydra_config import HydraConfig

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        work(task, config, run_dir, start)
    except ConfigError as error:
        if error.status == 2 and cluster_ranks()[1] == 0:
            remove_leftover(run_dir, Path(config.paths.log_dir))
        refuse(error)


def checked(task: Literal["train", "sample"], arguments: list[str]) -> list[str]:
    """Return the command line with all that it implies, after checking it; exit with one line if it is refused."""
    from diffusion_lab.config import help
    from diffusion_lab.config.command_line import tidy
    from diffusion_lab.config.compose import check, check_shown
    from diffusion_lab.config.refusals import without_nulls
    from diffusion_lab.config.resume import sampling_arguments, training_arguments
    from diffusion_lab.launch import cluster
    from diffusion_lab.launch.job import JOB, errors_recorded

    try:
        if {"--help", "-h"} & {*arguments}:
            print(help.help_text(task, arguments))
            sys.exit()
        arguments = without_nulls(tidy(arguments))
        cluster.agree(arguments)
        if INFORMATION & {*arguments} or AGENT in os.environ:  # the agent has checked for its ranks
            return arguments
        with errors_recorded():
            arguments = with_absolute_directories(arguments)
            if task == "sample":
                arguments = sampling_arguments(arguments)
            elif JOB not in os.environ:
                arguments = training_arguments(arguments)
            given = parse(arguments)
            name, only = given.config_name or task, given.cfg is not None or given.info is not None
            check(name, given.overrides, only_names=only, sweep=given.multirun, main=given.config_path)
            if given.cfg is not None:
                check_shown(name, given.overrides, given.package, given.resolve, given.config_path)
    except ConfigError as error:
        if cluster_ranks()[1] > 0:  # rank 0 prints it, unless torchrun ends it because this rank has ended
            time.sleep(3)
            sys.exit(2)
        refuse(error)
    return arguments


def work(task: Literal["train", "sample"], config: Any, run_dir: Path, start: list[str]) -> None:
    """Train or sample, in this process or as several ranks."""
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lab.config.typed import convert
    from diffusion_lab.launch import agent, multirun, process, rank
    from diffusion_lab.launch.job import errors_recorded

    if ranks := agent.ranks_to_start(config.trainer):
        if (config.trainer.num_nodes or 1) > 1 and multirun.named_by_time(HydraConfig.get().run):
            raise ConfigError(
                f"trainer.num_nodes={config.trainer.num_nodes}: add hydra.run.dir=DIR, equal on each node"
            )
        with errors_recorded():
            sys.exit(agent.run(process.command(start, HydraConfig.get()), config.trainer, ranks, run_dir, task))
    # Imported here: torch and Lightning take seconds, and --help must be quick.
    with quick_imports():
        if task == "train":
            from diffusion_lab.run.train import train as run
        else:
            from diffusion_lab.run.sample import sample as run
    convert(config)
    keep_freed_memory()
    with errors_recorded(), rank.working(run_dir, task):
        run(config)
