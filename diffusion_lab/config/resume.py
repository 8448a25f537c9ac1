"""Resume a run, or train a student of it: find its checkpoint, its directory and its original overrides."""

from __future__ import annotations

import contextlib
import re
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

OF_THE_START = ("ckpt_path", "allow_changes")
"""Keys that belong to one start of a run, not to the run."""

OF_THE_TEACHER = (
    "allow_changes", "ckpt_path", "hydra", "init_from", "init_strict", "init_weights", "loss", "sampler",
    "sampler_steps", "time_law",
)  # fmt: skip
"""Keys of a teacher's training, with all below them, that its students do without."""

PLACE = "hydra.run.dir"


def training_arguments(arguments: Sequence[str]) -> list[str]:
    """The full command line of `train.py`, also for a command that resumes a run.

    `ckpt_path=DIR`, or `last` for the newest run, resumes in that run's directory with its original overrides, followed
    by `arguments`, which take precedence; in a sweep, or with another `hydra.run.dir`, it branches off there.  `auto`
    resumes the run in this run's directory, if there is one.  The file of a checkpoint starts a new run from it.

    Raises:
        ConfigError: if there is no such run, another process trains it, or a new run would overwrite an old one.
    """
    options, overrides = split(arguments)
    given = {override.get_key_element(): override for override in parsed(overrides)}
    refuse_init_and_resume(given)
    if "ckpt_path" in given and given["ckpt_path"].is_sweep_override():
        return list(arguments)
    sweep, wanted = "--multirun" in options, text(given.pop("ckpt_path", None))
    directory = None if sweep else run_directory(given, wanted)
    newest = next(iter(checkpoints(directory)), None) if directory else None
    if sweep and wanted in ("last", "auto"):
        raise ConfigError(f"ckpt_path={wanted} in a sweep, which is resumed as a whole: name a directory or a file")
    existing = newest or next(iter(directory.glob(CONFIG)), None) if directory and wanted != "auto" else newest
    if wanted == "auto":
        wanted = newest and str(directory)
    elif wanted == "last":
        wanted = str(directory if newest else newest_run(log_directory(given), b"optimizer_states"))
    if existing and not (wanted and Path(wanted).resolve() == directory.resolve()):
        how = f"resume it with ckpt_path={directory}, or choose" if newest else "remove it, or choose"
        raise ConfigError(f"{directory} holds a run already ({existing.name}): {how} another hydra.run.dir")
    run = Path(wanted) if wanted and (Path(wanted) / CONFIG).is_file() else None
    original = []
    if run is not None:
        replaced = {*given, *OF_THE_START}
        original = [o.input_line for o in original_overrides(run) if o.get_key_element() not in replaced]
        options, given = with_origin(run, options, given)
    # Name the file, so that all ranks use the same one even if the run to branch off from writes the next one.
    more = [] if wanted is None else [override("ckpt_path", str(find(run)) if run else wanted)]
    if run is not None and not sweep and PLACE not in given:
        more.append(override(PLACE, str(run)))
        if cluster_ranks()[1] == 0:
            with locked(run):  # refused before Hydra writes into it
                pass
    return [*options, *original, *(override.input_line for override in given.values()), *more]


def refuse_init_and_resume(given: Mapping[str, Override]) -> None:
    """A run is initialised from another or resumes one, not both."""
    source, resumed = (text(given.get(key)) for key in ("init_from", "ckpt_path"))
    if source and resumed and resumed != "auto":
        raise ConfigError(
            f"init_from={source} starts a training at step 0, ckpt_path={resumed} resumes one: give one of them"
        )


def with_origin(run: Path, flags: list[str], given: dict[str, Override]) -> tuple[list[str], dict[str, Override]]:
    """Flags and overrides with which a command finds the configurations and packages of a run."""
    record = stored_config(run).get(packages.RECORD) or {}
    packages.admit(record)
    more, found = origin.restored(record, flags, [override.input_line for override in given.values()])
    search = parsed(directories.searching(found))
    return [*more, *flags], {**given, **{override.get_key_element(): override for override in search}}


def sampling_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of `sample.py` with the configurations and packages of the sampled run."""
    flags, overrides = split(arguments)
    given = {override.get_key_element(): override for override in parsed(overrides)}
    lines = {key: f"+{o.input_line}" for key, o in given.items() if key.startswith("data.")}
    given |= {key: parsed([line])[0] for key, line in lines.items()}  # the checkpoint knows the keys of its data
    wanted = given.get("ckpt_path")
    if wanted is not None and not wanted.is_sweep_override():
        path = text(wanted) or ""
        run = newest_run(log_directory(given)) if path == "last" else Path(path)
        folder = run.absolute().parent.parent if run.is_file() else run
        run = folder if (folder / CONFIG).is_file() else run
        if path == "last":
            given |= {"ckpt_path": parsed([override("ckpt_path", str(run))])[0]}
        with contextlib.suppress(origin.MissingDirectory):  # an option in it that is used is refused later
            _, given = with_origin(run, flags, given)
    return [*flags, *(override.input_line for override in given.values())]


def stored_config(run: Path) -> dict[str, Any]:
    """The configuration of a run; empty if it has none."""
    file = run / CONFIG
    return first_edition.settings(OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}


def text(override: Override | None) -> str | None:
    """The value of an override as plain text."""
    value = None if override is None else override.value()
    return value.text if isinstance(value, QuotedString) else value and str(value)


def original_overrides(run: Path) -> list[Override]:
    """The overrides that a run was started with; without paths.run_dir, which had no effect and is refused now."""
    given = [first_edition.override(line) for line in stored_config(run).get("overrides", [])]
    return parsed([line for line in given if not line.startswith("paths.run_dir=")])


def of_teacher(run: Path, flags: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (flags, overrides) of a training with the settings of the teacher's run, replaced by `overrides`."""
    part = re.compile(r"[+~]*(\w+)")
    kept = [one for one in original_overrides(run) if part.match(one.get_key_element())[1] not in OF_THE_TEACHER]
    found, given = with_origin(run, list(flags), {one.get_key_element(): one for one in parsed(overrides)})
    words = {one.get_key_element(): one.input_line for one in (*kept, *given.values())}
    return found, list(words.values())


def run_directory(given: Mapping[str, Override], wanted: str | None) -> Path | None:
    """The run directory of these overrides; None if it is named after the time and therefore new."""
    if PLACE not in given and wanted != "auto" and cluster_ranks()[2] == 1:
        return None
    try:
        config = composed("train", [override.input_line for override in given.values()], with_hydra=True)
        with hydra_config(config):
            return Path(config.hydra.run.dir)
    except ConfigError:
        return None  # refused later with a better message


def log_directory(given: Mapping[str, Override]) -> Path:
    """The log directory of these overrides."""
    paths = [override.input_line for key, override in given.items() if key.startswith("paths.")]
    return Path(composed("train", paths).paths.log_dir)
