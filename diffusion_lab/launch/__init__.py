"""From a command line to a run: the only part, with checkpoint.py, that knows Hydra's configuration."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

from diffusion_lab.launch.imports import quick_imports
from diffusion_lab.launch.instantiate import ConfigError, instantiate

__all__ = ["ConfigError", "instantiate", "main"]

INFORMATION = {"--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc"}


def main(task: Literal["train", "sample"]) -> None:
    """Run `train.py` or `sample.py`: check the whole command line first, then let Hydra start each job.

    Exits with status 2 and one line on standard error if the command line or the set-up is refused.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from diffusion_lab.launch import multirun, process
    from diffusion_lab.launch.compose import CONF, check
    from diffusion_lab.launch.job import run_job, witnessed

    words, start = sys.argv[1:], process.program(sys.argv[1:])
    try:
        # The first rank has checked for the others; files of another --config-dir are not known here.
        if not INFORMATION & set(words) and not process.of_another_rank() and not process.options(words):
            with witnessed():
                given = process.arguments(words)
                check(task, given.overrides, only_words=given.cfg is not None)
    except ConfigError as error:
        refuse(error)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=task)
    def job(config: Any) -> float | None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_job(start, config, own=["out"] if task == "sample" and config.out is None else [])
        # Imported here: torch and Lightning take seconds, and --help must not.
        with quick_imports():
            if task == "train":
                from diffusion_lab.launch.train import train as run
            else:
                from diffusion_lab.launch.sample import sample as run
        try:
            with witnessed(), process.ranks_of_this_job(start):
                run(config)
        except ConfigError as error:
            refuse(error)
        return None

    with multirun.sweeping(words):
        job()


def refuse(error: Exception) -> None:
    """Say in one line what is wrong, and exit with status 2 (HYDRA_FULL_ERROR=1 shows where it came from)."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
