"""How a run was started: recorded in its configuration, and restored when it is resumed or sampled from."""

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
from diffusion_lab.config.directories import CONF, PACKAGE, SEARCH, listed
from diffusion_lab.config.instantiate import FURTHER, PATH, named_in
from diffusion_lab.config.packages import key_file, seal
from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.run_directory import newest_step


class MissingDirectory(ConfigError):
    """A configuration directory that a run was started with no longer exists."""


PLAIN = re.compile(r"[\w./@%+-]+")
"""Values that need no quoting for a shell or Hydra."""


def origin(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The directory in which this run was started, its program, additional configuration directories and packages.

    A resumed run keeps the directory of `before`, which its relative paths refer to.
    A seal shows that this user wrote the record: see `admit`.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    sources = {source.provider: source.path for source in hydra.runtime.config_sources}
    packages = named_in(FURTHER)
    found: dict[str, Any] = {
        "directory": (before or {}).get("directory") or hydra.runtime.cwd,
        "program": program("train"),
        "config_name": hydra.job.config_name,
        "config_path": sources.get("main") if sources.get("main") != str(CONF) else None,
        "config_dirs": list(hydra.searchpath),
        "packages": packages,
        "path": named_in(PATH) if packages else [],
    }
    return {**found, "seal": seal(found) if packages else None}


def restored(started: Mapping[str, Any], flags: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, search path) with which Hydra finds what a run was composed from, besides those of this command.

    Raises:
        MissingDirectory: for a directory that no longer exists, unless this command gives one.
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
        raise MissingDirectory(
            f"the run was started with --config-dir={gone[0][7:]}, which no longer exists: pass its new location"
        )
    return more, [*now, *(place for place in before if place not in gone)]


def program(task: str) -> list[str]:
    """Arguments that start a task from any directory: the script of this checkout, or the installed module."""
    script = PACKAGE.parent / f"{task}.py"
    return [str(script)] if script.is_file() and CONF.parent == PACKAGE.parent else ["-m", f"{PACKAGE.name}.{task}"]


def program_name(task: str) -> str:
    """What a user types to start a task: the script of a checkout, or the installed program or module."""
    if program(task)[0] != "-m":
        return f"python {task}.py"
    return f"diffusion-lab {task}" if has_console_script() else f"python -m {PACKAGE.name}.{task}"


def has_console_script() -> bool:
    """Whether the program `diffusion-lab` is found, and is that of this Python."""
    found = shutil.which("diffusion-lab")
    return found is not None and Path(found).absolute().parent == Path(sys.executable).absolute().parent


def command(task: str, checkpoint: str | Path, *overrides: str) -> str:
    """A command that samples from a run or resumes it, in any directory."""
    place = checkpoint if checkpoint == "last" else quoted(os.path.abspath(checkpoint))
    return " ".join([invocation(task, f"ckpt_path={place}"), *overrides])


def invocation(task: str, *arguments: str) -> str:
    """A command of the package with these arguments, quoted for a shell, in any directory."""
    python, this = shutil.which("python"), Path(sys.executable).absolute()
    same = python and Path(python).absolute().parent == this.parent and os.path.samefile(python, this)
    executable = "python" if same else sys.executable  # console scripts are started by python3 of the same directory
    packages = os.environ.get(FURTHER) if key_file() is None else None
    before = [f"{FURTHER}={shlex.quote(packages)}"] if packages else []
    is_script = program(task)[0] == "-m" and has_console_script()
    first = program_name(task).split() if is_script else [executable, *program(task)]
    return " ".join([*before, *map(shlex.quote, (*first, *arguments))])


def advice(directory: Path, task: str) -> str:
    """How to resume."""
    if task == "sample":
        return "the same command again resumes from the samples generated so far"
    found = newest_step(directory)
    if found is None:
        return "there is no checkpoint yet"
    return f"the last checkpoint is of step {int(found.stem[5:])}; resume:  {command('train', directory)}"


def quoted(text: str) -> str:
    """A value quoted so that Hydra parses it back unchanged."""
    return text if PLAIN.fullmatch(text) else override("", text)[1:]
