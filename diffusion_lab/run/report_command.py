"""The command `python -m diffusion_lab.report`: write the page of a run that is finished, stopped or running."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.cli import command
from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say
from diffusion_lab.page import PAGE
from diffusion_lab.storage.run_directory import named_run

HELP = """\
Write report.html: a run on one page, with its settings, curves, samples, results and the next commands.

  python -m diffusion_lab.report RUN [RUN ...]

RUN is the directory of a run of train.py, or of samples of sample.py; last is the newest run in ./logs.  The page is
one file that loads nothing from anywhere.  train.py writes it by itself (report=false: not), and so does sample.py with
evaluate=true; for a sweep or any other set of runs: diffusion-lab compare.
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Write the page of each run."""
    for argument in arguments:
        if argument != "last" and (argument.startswith("-") or not Path(argument).is_dir()):
            raise ConfigError(f"{argument} is not a directory: give the directories of runs, or last")
    folders = [named_run(argument) for argument in arguments]
    from diffusion_lab.run.page import RunPage

    for page in [RunPage(folder) for folder in folders]:
        if not page.write():
            sys.exit(1)
        say(f"written  {os.path.relpath(page.folder / PAGE)}")
