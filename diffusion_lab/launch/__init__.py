"""From a command line to a run: the only part, with checkpoint.py, that knows Hydra's configuration."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

from diffusion_lab.launch.instantiate import ConfigError, instantiate

__all__ = ["ConfigError", "instantiate", "main"]

INFORMATION = {"--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc"}


def main(task: Literal["train", "sample"]) -> None:
    """Run `train.py` or `sample.py`: check the whole command line first, then let Hydra start each job.

    Exits with status 2 and one line on standard error if the command line or the set-up is refused.
    """
    import hydra

    from diffusion_lab.launch.compose import CONF, check

    arguments = sys.argv[1:]
    try:
        if not INFORMATION & set(arguments):
            check(task, [a for a in arguments if not a.startswith("-")])
    except ConfigError as error:
        refuse(error)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=task)
    def job(config: Any) -> None:
        # Imported here: torch and Lightning take seconds, and --help must not.
        if task == "train":
            from diffusion_lab.launch.train import train as run
        else:
            from diffusion_lab.launch.sample import sample as run
        try:
            run(config)
        except ConfigError as error:
            refuse(error)

    job()


def refuse(error: Exception) -> None:
    """Say in one line what is wrong, and exit with status 2 (HYDRA_FULL_ERROR=1 shows where it came from)."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
