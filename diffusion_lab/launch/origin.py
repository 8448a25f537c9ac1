"""How a run was started: kept in its configuration, and taken up again by what goes on with it or samples from it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.launch.instantiate import FURTHER, PATH, ConfigError
from diffusion_lab.launch.places import CONF, PACKAGE, SEARCH, listed

RECORD = "started"
"""Key of a run's configuration that holds its origin."""


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


def admit(started: Mapping[str, Any] | None) -> None:
    """Allow the packages that a run was started with, in this process and those that it starts.

    Only where this user has started it: a configuration that came from elsewhere must not widen what it may build.
    """
    record = {key: value for key, value in (started or {}).items() if key != "seal"}
    known = record.get("packages") and hmac.compare_digest(str(started.get("seal")), seal(record) or "unsealed")
    for variable, values, separator in (
        (FURTHER, record.get("packages"), ","),
        (PATH, record.get("path"), os.pathsep),
    ):
        if known:
            now = [value for value in os.environ.get(variable, "").split(separator) if value]
            os.environ[variable] = separator.join(dict.fromkeys([*now, *values]))


def lacking(started: Mapping[str, Any] | None) -> str:
    """What to set in the environment for a run whose packages are not allowed; empty where nothing is missing."""
    now = os.environ.get(FURTHER, "").split(",")
    missing = [name for name in (started or {}).get("packages") or () if name not in now]
    if not missing:
        return ""
    return (
        f"; its run was started with {FURTHER}={','.join(missing)} in {started['directory']}: give it if you trust it"
    )


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


def command(task: str, checkpoint: str | Path, *words: str) -> str:
    """A command that samples from a run, or goes on with it, wherever it is pasted."""
    python = shutil.which("python")
    own = "python" if python and Path(python).absolute() == Path(sys.executable).absolute() else sys.executable
    packages = os.environ.get(FURTHER) if key_file() is None else None
    before = [f"{FURTHER}={shlex.quote(packages)}"] if packages else []
    place = checkpoint if checkpoint == "last" else spelled(os.path.abspath(checkpoint))
    start = [shlex.quote(word) for word in (own, *program(task), f"ckpt_path={place}")]
    return " ".join([*before, *start, *words])


def spelled(text: str) -> str:
    """A value as Hydra reads it back."""
    from diffusion_lab.launch.process import override

    return text if PLAIN.fullmatch(text) else override("", text)[1:]


def seal(record: Mapping[str, Any]) -> str | None:
    """What only this user can write under a record; None where no secret can be kept."""
    file = key_file()
    message = json.dumps(record, sort_keys=True).encode()
    return None if file is None else hmac.new(file.read_bytes(), message, hashlib.sha256).hexdigest()


def key_file() -> Path | None:
    """The file of this user's secret, made if need be; None where there can be none."""
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = home / PACKAGE.name / "seal"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            try:
                os.link(fresh, path)  # whoever is first
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path if len(path.read_bytes()) == 32 else None
    except (OSError, RuntimeError):  # no home
        return None
