"""Going on with a run: which checkpoint that means, in which directory, and on whose command line."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf

from diffusion_lab import first_edition
from diffusion_lab.config import origin, packages, places
from diffusion_lab.config.command_line import arguments, override
from diffusion_lab.config.compose import composed, parsed
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.run_directory import CONFIG, checkpoints, find, newest_run
from diffusion_lab.storage.run_lock import locked

OWN = ("ckpt_path", "allow_changes")
"""Keys that mean one start of a run, not the run."""

PLACE = "hydra.run.dir"


def go_on(words: Sequence[str]) -> list[str]:
    """The command line of `train.py` with all that it means told, where it goes on with a run.

    `ckpt_path=DIR`, or `last` for the newest run, goes on in that run's directory with the words that it was started
    with, then with `words`, which win; in a sweep, or with a `hydra.run.dir` of its own, it branches off there.  `auto`
    goes on with the run in this run's directory, if there is one.  A checkpoint's file starts a new run from it.

    Raises:
        ConfigError: if there is no such run, another process trains it, or a new run would write over an old one.
    """
    given = arguments(words)
    own = {override.get_key_element(): override for override in parsed(given.overrides)}
    refuse_two_beginnings(own)
    if "ckpt_path" in own and own["ckpt_path"].is_sweep_override():
        return list(words)
    sweep, wanted = given.multirun, text(own.pop("ckpt_path", None))
    place = None if sweep else run_directory(own, wanted)
    newest = next(iter(checkpoints(place)), None) if place else None
    if sweep and wanted in ("last", "auto"):
        raise ConfigError(f"ckpt_path={wanted} in a sweep, which is itself gone on with: name a directory or a file")
    left = newest or next(iter(place.glob(CONFIG)), None) if place and wanted != "auto" else newest
    if wanted == "auto":
        wanted = newest and str(place)
    elif wanted == "last":
        wanted = str(place if newest else newest_run(log_directory(own), b"optimizer_states"))
    if left and not (wanted and Path(wanted).resolve() == place.resolve()):
        how = f"go on with it by ckpt_path={place}, or give" if newest else "remove it, or give"
        raise ConfigError(f"{place} holds a run already ({left.name}): {how} another hydra.run.dir")
    run = Path(wanted) if wanted and (Path(wanted) / CONFIG).is_file() else None
    first = [] if run is None else [o.input_line for o in started(run) if o.get_key_element() not in {*own, *OWN}]
    options = [word for word in words if word not in given.overrides]
    if run is not None:
        options, own = as_before(run, options, own)
    # The file, which is the same for all ranks, even if the run to branch off from writes the next one meanwhile.
    more = [] if wanted is None else [override("ckpt_path", str(find(run)) if run else wanted)]
    if run is not None and not sweep and PLACE not in own:
        more.append(override(PLACE, str(run)))
        if cluster_ranks()[1] == 0:
            with locked(run):  # refused before Hydra writes into it
                pass
    return [*options, *first, *(override.input_line for override in own.values()), *more]


def refuse_two_beginnings(own: Mapping[str, Override]) -> None:
    """A run begins at the weights of another, or goes on with one."""
    begins, goes_on = (text(own.get(key)) for key in ("init_from", "ckpt_path"))
    if begins and goes_on and goes_on != "auto":
        raise ConfigError(
            f"init_from={begins} begins a training at step 0, ckpt_path={goes_on} goes on with one: give one of them"
        )


def as_before(run: Path, flags: list[str], own: dict[str, Override]) -> tuple[list[str], dict[str, Override]]:
    """Flags and overrides with which a command finds the configurations and packages that a run was started with."""
    record = kept(run).get(packages.RECORD) or {}
    packages.admit(record)
    more, found = origin.restored(record, flags, [override.input_line for override in own.values()])
    search = parsed(places.searching(found))
    return [*more, *flags], {**own, **{override.get_key_element(): override for override in search}}


def sampled(words: Sequence[str]) -> list[str]:
    """The command line of `sample.py` with the configurations and packages of the run that it samples from."""
    given = arguments(words)
    flags = [word for word in words if word not in given.overrides]
    own = {override.get_key_element(): override for override in parsed(given.overrides)}
    lines = {key: f"+{o.input_line}" for key, o in own.items() if key.startswith("data.")}
    own |= {key: parsed([line])[0] for key, line in lines.items()}  # which keys the data have, the checkpoint knows
    wanted = own.get("ckpt_path")
    if wanted is not None and not wanted.is_sweep_override():
        path = text(wanted) or ""
        run = newest_run(log_directory(own)) if path == "last" else Path(path)
        run = run.parents[1] if run.is_file() and run.parent.name == "checkpoints" else run
        if path == "last":
            own |= {"ckpt_path": parsed([override("ckpt_path", str(run))])[0]}
        with contextlib.suppress(origin.Gone):  # it is not needed, unless an option of it is: then that one is told
            _, own = as_before(run, flags, own)
    return [*flags, *(override.input_line for override in own.values())]


def kept(run: Path) -> dict[str, Any]:
    """The configuration of a run; nothing if it has none."""
    file = run / CONFIG
    return first_edition.settings(OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}


def text(override: Override | None) -> str | None:
    """The value of an override as a plain word."""
    value = None if override is None else override.value()
    return value.text if isinstance(value, QuotedString) else value and str(value)


def started(run: Path) -> list[Override]:
    """The overrides that a run was started with."""
    return parsed([first_edition.override(line) for line in kept(run).get("overrides", [])])


def run_directory(own: Mapping[str, Override], wanted: str | None) -> Path | None:
    """Where these overrides put a run; None where it is new anyway, named after the time."""
    if PLACE not in own and wanted != "auto" and cluster_ranks()[2] == 1:
        return None
    before = HydraConfig.instance().cfg
    try:
        config = composed("train", [override.input_line for override in own.values()], with_hydra=True)
        HydraConfig.instance().cfg = config  # which ${hydra:...} looks things up in
        return Path(config.hydra.run.dir)
    except ConfigError:
        return None  # the words are refused later, by what knows how to tell it
    finally:
        HydraConfig.instance().cfg = before


def log_directory(own: Mapping[str, Override]) -> Path:
    """Where these overrides have runs."""
    words = [override.input_line for key, override in own.items() if key.startswith("paths.")]
    return Path(composed("train", words).paths.log_dir)
