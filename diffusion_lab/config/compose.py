"""Compose a command line into configurations, with errors that name the nearest valid key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import directories, resolvers, schema
from diffusion_lab.config.class_rules import entries, missing
from diffusion_lab.config.directories import CONF, PARTS, SEARCH
from diffusion_lab.config.hydra_part import check_hydra
from diffusion_lab.config.refusals import (
    check_option,
    check_structure,
    composed_by_hydra,
    in_one_line,
    unknown,
    without_nulls,
)
from diffusion_lab.config.typed import convert, name_typed_keys
from diffusion_lab.config.unused import refuse_unused, unused
from diffusion_lab.config.validation import check_network_fits_data, nearest, validate
from diffusion_lab.errors import ConfigError

resolvers.register()

OF_SAMPLES = ("samples", "evaluation")
"""Callbacks that a model without samples, a classifier, does without."""


def plain(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved configuration as plain containers.

    A recipe or an experiment may contain a setting for a part of the sampler or a likelihood that was not chosen, or
    for a callback that the model does without; it is dropped, unless it is among the `overrides` of the command.
    """
    settings = OmegaConf.to_container(config, resolve=True)
    callbacks = settings.get("callback") or {}
    for name in OF_SAMPLES:
        if isinstance(callbacks.get(name), dict) and "_target_" not in callbacks[name]:
            callbacks[name] = None
    for group in ("sampler", "likelihood"):
        for node in (settings.get(group), (settings.get("model") or {}).get(group)):
            for key in [k for k, v in (node or {}).items() if isinstance(v, dict) and "_target_" not in v]:
                del node[key]
            for part in ("sampler", *PARTS) if group == "sampler" and node else ():
                _drop_foreign(node if part == group else node.get(part.rpartition("/")[2]), part, overrides)
    return settings


def _drop_foreign(node: dict[str, Any] | None, part: str, overrides: Sequence[str]) -> None:
    """Drop keys of a sampler, or of its parts, that belong to another option of the group and not to its class."""
    known = schema.parameters(node["_target_"]) if node and "_target_" in node else None
    typed = {word.lstrip("+").partition("=")[0] for word in overrides}
    keys = [k for k in node or () if known is not None and k[0] != "_" and k not in known]
    for key in keys:
        others = f"{part}/{key}" in PARTS or any(key in OmegaConf.load(path) for path in (CONF / part).glob("*.yaml"))
        if others and not typed & {f"{part}/{key}", f"{part.replace('/', '.')}.{key}"}:
            del node[key]


def composed(task: str, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose overrides, on request with Hydra's own configuration.

    Inside a command this uses the running Hydra, with the configuration directories added to it.
    """
    running = GlobalHydra.instance().is_initialized()
    added = _search_path()
    with nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3"):
        return composed_by_hydra(task, [*added, *overrides], with_hydra)


def training(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain configuration of a training, with the `choices` of groups, as stored in its checkpoints."""
    with in_one_line():
        config = composed("train", overrides, with_hydra=True)
    choices = {group: name for group, name in config.hydra.runtime.choices.items() if not group.startswith("hydra")}
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    convert(config)
    return {**plain(config), "choices": choices}


def check(
    task: str,
    arguments: Sequence[str],
    only_names: bool = False,
    sweep: bool = False,
    main: str | None = None,
    used: Sequence[Sequence[str]] = (),
) -> None:
    """Compose and validate every job of a command; nothing but Hydra is imported.

    `only_names` checks only the names, for a configuration that is shown and not run; only a `sweep` has many jobs.
    `main` is another main configuration directory.  With `used`, only those parts of the configuration are validated,
    each group of them on its own.

    Raises:
        ConfigError: for an unknown key or option, and for everything that `validate` refuses.
    """
    overrides = parsed(without_nulls(arguments))
    several = next((o.input_line for o in overrides if o.is_sweep_override()), None)
    if several and not sweep and not any(o.get_key_element() == "hydra.mode" for o in overrides):
        raise ConfigError(f"{several} has several values: add -m to sweep over them, or quote it if it is one value")
    if sweep and only_names:
        raise ConfigError("--cfg shows one configuration: leave out -m, and give each key one value")
    found = directories.directories(arguments, main)
    with initialize_config_dir(str(found[0]), version_base="1.3"):
        check_hydra(task, overrides, sweep)
        refuse_unused([_check_job(task, job, found, only_names, used) for job in _jobs(overrides, found)])


def _check_job(
    task: str, job: Sequence[str], found: Sequence[Path], only_names: bool, used: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Validate the configuration of one job; return its overrides that have no effect, and why."""
    config, chosen = _check_names(task, job, found)
    if only_names:
        return {}
    base = OmegaConf.to_container(config, resolve=False)
    with in_one_line():
        config = config if chosen == job else composed_by_hydra(task, job)
        OmegaConf.set_struct(config, False)
        config.paths.run_dir = "."  # known only when the job starts
        config.variance = config.variance or "fixed_large"  # sample.py takes the checkpoint's
        raw = OmegaConf.to_container(config, resolve=False)
        check_structure(raw, base)
        raw = {key: raw[key] for part in used for key in part if key in raw} or raw
        if lacking := missing(raw):
            raise ConfigError(f"{', '.join(lacking)} must be given: add {lacking[0]}=...")
        check_network_fits_data(raw)  # unresolved: an image network refers to data.shape[1]
        convert(config)
        settings, typed = plain(config, job), parsed(job)
        with name_typed_keys(raw, {o.key_or_group for o in typed}):
            for part in used or (settings,):
                validate({key: settings[key] for key in part if key in settings})
        return {} if used else unused(typed, raw, settings)


def missing_checkpoints(task: str, overrides: Sequence[str], part: str) -> list[str]:
    """Keys of checkpoints that a part of the configuration needs and that are not given."""
    with in_one_line():
        raw = OmegaConf.to_container(composed(task, overrides), resolve=False)
    return [path for path in missing({part: raw[part]}) if path.endswith(".ckpt_path")]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides as parsed by Hydra.

    Raises:
        ConfigError: for what is not an override.
    """
    with in_one_line():
        return OverridesParser.create().parse_overrides(list(overrides))


def check_shown(
    task: str, arguments: Sequence[str], package: str | None, resolve: bool, main: str | None = None
) -> None:
    """Check that what --cfg shows can be composed.

    Raises:
        ConfigError: if the package does not exist or the configuration cannot be resolved.
    """
    folder = directories.directories(arguments, main)[0]
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = composed_by_hydra(task, arguments, with_hydra=True)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        with in_one_line():
            OmegaConf.to_container(config, resolve=resolve)
    keys = _keys(config)
    if package not in (None, "_global_", *keys) and not package.startswith("hydra"):
        raise ConfigError(f"--package {package} does not exist{nearest(package, keys)}")


def _jobs(overrides: Sequence[Override], found: Sequence[Path] = (CONF,)) -> Iterator[list[str]]:
    """The override lists of every job of a sweep; one list without a sweep."""

    def choices(override: Override) -> list[str]:
        key = override.get_key_element()
        if isinstance(override.value(), Glob):
            names = override.value().filter(directories.options(override.key_or_group, found))
            if not names:
                raise ConfigError(f"{override.input_line} matches no option of {key}")
            return [f"{key}={name}" for name in names]
        if override.is_sweep_override() and (override.is_choice_sweep() or override.is_discrete_sweep()):
            return [f"{key}={value}" for value in override.sweep_string_iterator()]
        if isinstance(override.value(), IntervalSweep):  # check its ends, between which the optimiser samples
            return [f"{key}={end}" for end in (override.value().start, override.value().end)]
        return [override.input_line]

    keys = {o.input_line: o.get_key_element().lstrip("+~") for o in overrides}
    kept = [o for o in overrides if keys[o.input_line] == SEARCH or not keys[o.input_line].startswith("hydra")]
    return (list(job) for job in itertools.product(*map(choices, kept)))


def _check_names(task: str, job: Sequence[str], found: Sequence[Path]) -> tuple[DictConfig, list[str]]:
    """Check that each override names a group with an existing option, or a key of the chosen groups.

    Returns the configuration composed from the groups alone, and their overrides.
    """
    overrides = parsed(job)
    groups = directories.groups(found)
    groups_here = _groups_of(task, found[0], groups)
    chosen = []
    for override in overrides:
        key = override.key_or_group
        if key in groups:
            check_option(override, directories.options(key, found), groups_here, task)
            chosen.append(override.input_line)
        elif key == SEARCH:
            chosen.append(override.input_line)
    config = composed_by_hydra(task, chosen)
    keys = _keys(config)
    for override in overrides:
        key = override.key_or_group
        if key == "paths.run_dir":
            raise ConfigError(f"{override.input_line}: it is set when a run starts; choose it with hydra.run.dir=...")
        new = override.is_add() or override.is_force_add()
        if key not in (*groups, SEARCH) and not new and key not in keys:
            raise ConfigError(unknown(key, keys, groups_here, task, OmegaConf.to_container(config, resolve=False)))
    return config, chosen


def _groups_of(task: str, folder: Path, groups: Sequence[str]) -> list[str]:
    """The groups in a command's defaults list, and those nested in them."""
    if not (folder / f"{task}.yaml").is_file():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError(f"--config-name={task} does not exist: choose {names}")
    entries = OmegaConf.to_container(OmegaConf.load(folder / f"{task}.yaml"), resolve=False).get("defaults", [])
    keys = [str(key).removeprefix("optional ").partition("@")[0] for e in entries if isinstance(e, dict) for key in e]
    return [g for g in groups if g.partition("/")[0] in keys and g != "hydra"]


def options(group: str) -> list[str]:
    """Names of a group's options, without those of nested groups; inside a command, with those of the user."""
    return directories.options(group, directories.directories(_search_path()))


def _search_path() -> list[str]:
    """The override that adds the configuration directories of the running command, if there is one."""
    return directories.searching(HydraConfig.get().searchpath) if HydraConfig.initialized() else []


def _keys(config: DictConfig) -> set[str]:
    """Every dotted path of a configuration."""
    return {path for path, _ in entries(OmegaConf.to_container(config, resolve=False))}
