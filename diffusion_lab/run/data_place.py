"""Where the data of a trained run are now: on another machine, or in another directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config.instantiate import resolve
from diffusion_lab.config.packages import RECORD
from diffusion_lab.errors import ConfigError

USUAL = ("data_dir", "root")


def places(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a data set that only say where it is stored, as declared by its class."""
    if "_target_" not in settings:
        return ()
    declared = getattr(resolve(settings["_target_"], "data"), "places", USUAL)
    return tuple(key for key in declared if key in settings)


def located(trained: Mapping[str, Any], given: Mapping[str, Any], data_dir: str | None = None) -> dict[str, Any]:
    """Settings of the data that a checkpoint was trained on, with their current location.

    Args:
        trained: configuration of the training; relative paths that do not exist here start where the run was started.
        given: keys that say where the data are, replacing those of `trained`.
        data_dir: the same for data with a single location, whatever its key is called.

    Raises:
        ConfigError: for a key that says anything else.
    """
    settings = dict(trained["data"])
    known = places(settings)
    foreign = [key for key in given if key not in known]
    if foreign:
        allowed = ", ".join(f"data.{key}" for key in known) or "none, these data need no files"
        raise ConfigError(
            f"data.{foreign[0]} is set by the checkpoint: only the location of the data can be given here ({allowed})"
        )
    if data_dir is not None:
        if not known:
            raise ConfigError("data_dir says where the data are, but these data need no files: leave it out")
        given = {"data_dir" if "data_dir" in known else known[0]: data_dir, **given}
    return {**moved(settings, trained.get(RECORD), known), **given}


def moved(settings: Mapping[str, Any], started: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """Resolve relative paths under these keys from where the run was started, if they do not exist here."""
    directory = Path((started or {}).get("directory") or ".")
    paths = {key: settings[key] for key in keys if isinstance(settings.get(key), str)}
    found = {key: directory / value for key, value in paths.items() if not Path(value).expanduser().exists()}
    return {**settings, **{key: str(path) for key, path in found.items() if path.exists()}}
