"""How a run was started: kept in its configuration, and taken up again by what goes on with it or samples from it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.config.command_line import override
from diffusion_lab.config.instantiate import FURTHER, PATH
from diffusion_lab.config.packages import key_file, seal
from diffusion_lab.config.places import CONF, PACKAGE, SEARCH, listed
from diffusion_lab.errors import ConfigError


class Gone(ConfigError):
    """A directory of configurations that a run was started with is not there any more."""


PLAIN = re.compile(r"[\w./@%+-]+")
"""Values that neither a shell nor Hydra reads as anything but themselves."""


def origin(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The directory in which this run was started, its program, its further directories of options, and its packages.

    A run that is gone on with, `before`, keeps its directory: where its relative paths begin.

    A seal tells that it was written by this user: see `admit`.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    sources = {source.provider: source.path for source in hydra.runtime.config_sources}
    packages = [name.strip() for name in os.environ.get(FURTHER, "").split(",") if name.strip()]
    found: dict[str, Any] = {
        "directory": (before or {}).get("directory") or hydra.runtime.cwd,
        "program": program("train"),
        "config_name": hydra.job.config_name,
        "config_path": sources.get("main") if sources.get("main") != str(CONF) else None,
        "config_dirs": list(hydra.searchpath),
        "packages": packages,
        "path": [place for place in os.environ.get(PATH, "").split(os.pathsep) if place] if packages else [],
    }
    return {**found, "seal": seal(found) if packages else None}


def restored(started: Mapping[str, Any], flags: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, search path) that have Hydra find what a run was composed from, beside those of this command.

    Raises:
        Gone: for a directory that is not there any more, unless this command gives one.
    """
    more = [
        f"--{key.replace('_', '-')}={started[key]}"
        for key, usual in (("config_name", "train"), ("config_path", None))
        if started.get(key, usual) != usual and not any(flag.startswith(f"--{key.replace('_', '-')}") for flag in flags)
    ]
    now = [place for word in overrides if word.startswith(f"{SEARCH}=") for place in listed(word)]
    before = [place for place in started.get("config_dirs") or () if place not in now]
    gone = [place for place in before if place.startswith("file://") and not Path(place[7:]).is_dir()]
    if gone and not now:
        raise Gone(f"the run was started with --config-dir={gone[0][7:]}, which is gone: give it where it is now")
    return more, [*now, *(place for place in before if place not in gone)]


def program(task: str) -> list[str]:
    """What starts a task from any directory: the script of this checkout, or the module of an installed package."""
    script = PACKAGE.parent / f"{task}.py"
    return [str(script)] if script.is_file() and CONF.parent == PACKAGE.parent else ["-m", f"{PACKAGE.name}.{task}"]


def named(task: str) -> str:
    """What a user types to start a task: the script of a checkout, or the installed program or module."""
    if program(task)[0] != "-m":
        return f"python {task}.py"
    return f"diffusion-lab {task}" if installed() else f"python -m {PACKAGE.name}.{task}"


def installed() -> bool:
    """Whether the program `diffusion-lab` is found, and is that of this Python."""
    found = shutil.which("diffusion-lab")
    return found is not None and Path(found).absolute().parent == Path(sys.executable).absolute().parent


def command(task: str, checkpoint: str | Path, *words: str) -> str:
    """A command that samples from a run, or goes on with it, wherever it is pasted."""
    python = shutil.which("python")
    own = "python" if python and Path(python).absolute() == Path(sys.executable).absolute() else sys.executable
    packages = os.environ.get(FURTHER) if key_file() is None else None
    before = [f"{FURTHER}={shlex.quote(packages)}"] if packages else []
    place = checkpoint if checkpoint == "last" else spelled(os.path.abspath(checkpoint))
    first = named(task).split() if program(task)[0] == "-m" and installed() else [own, *program(task)]
    start = [shlex.quote(word) for word in (*first, f"ckpt_path={place}")]
    return " ".join([*before, *start, *words])


def advice(directory: Path, task: str) -> str:
    """How to go on."""
    if task == "sample":
        return "the same command again goes on with what is drawn"
    found = max(directory.glob("checkpoints/step_*.ckpt"), default=None)
    if found is None:
        return "there is no checkpoint yet"
    return f"the last checkpoint is of step {int(found.stem[5:])}; go on:  {command('train', directory)}"


def spelled(text: str) -> str:
    """A value as Hydra reads it back."""

    return text if PLAIN.fullmatch(text) else override("", text)[1:]
