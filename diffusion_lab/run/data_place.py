"""Where the data of a trained run lie now: on another machine, or in another directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config.instantiate import resolve
from diffusion_lab.config.packages import RECORD
from diffusion_lab.errors import ConfigError

USUAL = ("data_dir", "root")


def places(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a data set that only say where it lies, as its class declares them, of those that it has."""
    if "_target_" not in settings:
        return ()
    declared = getattr(resolve(settings["_target_"], "data"), "places", USUAL)
    return tuple(key for key in declared if key in settings)


def located(trained: Mapping[str, Any], given: Mapping[str, Any], data_dir: str | None = None) -> dict[str, Any]:
    """Settings of the data that a checkpoint was trained on, where they lie now.

    Args:
        trained: configuration of the training; its relative places start where it was started, if not here.
        given: keys that say where the data lie, in place of its own.
        data_dir: the same for the one place that the data have, whatever it is called.

    Raises:
        ConfigError: for a key that says more than that.
    """
    settings = dict(trained["data"])
    known = places(settings)
    foreign = [key for key in given if key not in known]
    if foreign:
        allowed = ", ".join(f"data.{key}" for key in known) or "none, these data lie nowhere"
        raise ConfigError(
            f"data.{foreign[0]} is the checkpoint's: only what says where the data lie can be given here ({allowed})"
        )
    if data_dir is not None:
        if not known:
            raise ConfigError("data_dir says where the data lie, but these data need no files: leave it out")
        given = {"data_dir" if "data_dir" in known else known[0]: data_dir, **given}
    return {**moved(settings, trained.get(RECORD), known), **given}


def moved(settings: Mapping[str, Any], started: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """Settings whose relative paths, under these keys, start where the run was started if they are not here."""
    directory = Path((started or {}).get("directory") or ".")
    own = {key: settings[key] for key in keys if isinstance(settings.get(key), str)}
    found = {key: directory / value for key, value in own.items() if not Path(value).expanduser().exists()}
    return {**settings, **{key: str(path) for key, path in found.items() if path.exists()}}
