"""Resume a run: find its checkpoint, its directory and its original overrides."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf

from diffusion_lab import first_edition
from diffusion_lab.config import directories, origin, packages
from diffusion_lab.config.command_line import override, split
from diffusion_lab.config.compose import composed, parsed
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.monkeypatches import hydra_config
from diffusion_lab.storage.run_directory import CONFIG, checkpoints, find, newest_run
from diffusion_lab.storage.run_lock import locked

OWN = ("ckpt_path", "allow_changes")
"""Keys that belong to one start of a run, not to the run."""

PLACE = "hydra.run.dir"


def training_arguments(words: Sequence[str]) -> list[str]:
    """The full command line of `train.py`, also for a command that resumes a run.

    `ckpt_path=DIR`, or `last` for the newest run, resumes in that run's directory with its original overrides, followed
    by `words`, which take precedence; in a sweep, or with another `hydra.run.dir`, it branches off there.  `auto`
    resumes the run in this run's directory, if there is one.  The file of a checkpoint starts a new run from it.

    Raises:
        ConfigError: if there is no such run, another process trains it, or a new run would overwrite an old one.
    """
    options, overrides = split(words)
    own = {override.get_key_element(): override for override in parsed(overrides)}
    refuse_init_and_resume(own)
    if "ckpt_path" in own and own["ckpt_path"].is_sweep_override():
        return list(words)
    sweep, wanted = "--multirun" in options, text(own.pop("ckpt_path", None))
    place = None if sweep else run_directory(own, wanted)
    newest = next(iter(checkpoints(place)), None) if place else None
    if sweep and wanted in ("last", "auto"):
        raise ConfigError(f"ckpt_path={wanted} in a sweep, which is resumed as a whole: name a directory or a file")
    left = newest or next(iter(place.glob(CONFIG)), None) if place and wanted != "auto" else newest
    if wanted == "auto":
        wanted = newest and str(place)
    elif wanted == "last":
        wanted = str(place if newest else newest_run(log_directory(own), b"optimizer_states"))
    if left and not (wanted and Path(wanted).resolve() == place.resolve()):
        how = f"resume it with ckpt_path={place}, or choose" if newest else "remove it, or choose"
        raise ConfigError(f"{place} holds a run already ({left.name}): {how} another hydra.run.dir")
    run = Path(wanted) if wanted and (Path(wanted) / CONFIG).is_file() else None
    first = [] if run is None else [o.input_line for o in started(run) if o.get_key_element() not in {*own, *OWN}]
    if run is not None:
        options, own = as_before(run, options, own)
    # Name the file, so that all ranks use the same one even if the run to branch off from writes the next one.
    more = [] if wanted is None else [override("ckpt_path", str(find(run)) if run else wanted)]
    if run is not None and not sweep and PLACE not in own:
        more.append(override(PLACE, str(run)))
        if cluster_ranks()[1] == 0:
            with locked(run):  # refused before Hydra writes into it
                pass
    return [*options, *first, *(override.input_line for override in own.values()), *more]


def refuse_init_and_resume(own: Mapping[str, Override]) -> None:
    """A run is initialised from another or resumes one, not both."""
    source, resumed = (text(own.get(key)) for key in ("init_from", "ckpt_path"))
    if source and resumed and resumed != "auto":
        raise ConfigError(
            f"init_from={source} starts a training at step 0, ckpt_path={resumed} resumes one: give one of them"
        )


def as_before(run: Path, flags: list[str], own: dict[str, Override]) -> tuple[list[str], dict[str, Override]]:
    """Flags and overrides with which a command finds the configurations and packages of a run."""
    record = kept(run).get(packages.RECORD) or {}
    packages.admit(record)
    more, found = origin.restored(record, flags, [override.input_line for override in own.values()])
    search = parsed(directories.searching(found))
    return [*more, *flags], {**own, **{override.get_key_element(): override for override in search}}


def sampling_arguments(words: Sequence[str]) -> list[str]:
    """The command line of `sample.py` with the configurations and packages of the sampled run."""
    flags, overrides = split(words)
    own = {override.get_key_element(): override for override in parsed(overrides)}
    lines = {key: f"+{o.input_line}" for key, o in own.items() if key.startswith("data.")}
    own |= {key: parsed([line])[0] for key, line in lines.items()}  # the checkpoint knows the keys of its data
    wanted = own.get("ckpt_path")
    if wanted is not None and not wanted.is_sweep_override():
        path = text(wanted) or ""
        run = newest_run(log_directory(own)) if path == "last" else Path(path)
        run = run.parents[1] if run.is_file() and run.parent.name == "checkpoints" else run
        if path == "last":
            own |= {"ckpt_path": parsed([override("ckpt_path", str(run))])[0]}
        with contextlib.suppress(origin.MissingDirectory):  # an option in it that is used is refused later
            _, own = as_before(run, flags, own)
    return [*flags, *(override.input_line for override in own.values())]


def kept(run: Path) -> dict[str, Any]:
    """The configuration of a run; empty if it has none."""
    file = run / CONFIG
    return first_edition.settings(OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}


def text(override: Override | None) -> str | None:
    """The value of an override as plain text."""
    value = None if override is None else override.value()
    return value.text if isinstance(value, QuotedString) else value and str(value)


def started(run: Path) -> list[Override]:
    """The overrides that a run was started with."""
    return parsed([first_edition.override(line) for line in kept(run).get("overrides", [])])


def run_directory(own: Mapping[str, Override], wanted: str | None) -> Path | None:
    """The run directory of these overrides; None if it is named after the time and therefore new."""
    if PLACE not in own and wanted != "auto" and cluster_ranks()[2] == 1:
        return None
    try:
        config = composed("train", [override.input_line for override in own.values()], with_hydra=True)
        with hydra_config(config):
            return Path(config.hydra.run.dir)
    except ConfigError:
        return None  # refused later with a better message


def log_directory(own: Mapping[str, Override]) -> Path:
    """The log directory of these overrides."""
    words = [override.input_line for key, override in own.items() if key.startswith("paths.")]
    return Path(composed("train", words).paths.log_dir)
