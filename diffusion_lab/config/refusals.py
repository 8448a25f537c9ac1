"""Refuse unknown keys and options in one line, and translate Hydra's error messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hydra import compose
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from diffusion_lab.config import declared, help
from diffusion_lab.config.class_rules import entries
from diffusion_lab.config.validation import nearest, nodes, renamed
from diffusion_lab.errors import ConfigError

DISABLED = {"logger": "csv", "likelihood": "none", "sampler/predictor": "none", "sampler/corrector": "none"}
"""The option that disables a group, where that makes sense."""

UNSET = ("experiment", "debug")
"""Groups that are empty unless an option is chosen."""


def without_nulls(overrides: Sequence[str]) -> list[str]:
    """Overrides in which `group=null` (or ~group), which Hydra does not know, is replaced by the disabling option."""
    kept: list[str] = []
    for word in overrides:
        group = word.removesuffix("=null") if word.endswith("=null") else word.removeprefix("~")
        if group == word or group not in (*DISABLED, *UNSET):
            kept.append(word)
        elif group in UNSET:
            kept = [earlier for earlier in kept if not earlier.startswith(f"{group}=")]
        else:
            kept.append(f"{group}={DISABLED[group]}")
    return kept


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn whatever Hydra or OmegaConf raises (which is not always of their own types) into a one-line error.

    Raises:
        ConfigError: instead.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(first_line(error)) from error


def composed_by_hydra(task: str, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose overrides with Hydra.

    Raises:
        ConfigError: naming the override at fault: the first one without which the rest can be composed.
    """

    def composed(chosen: Sequence[str]) -> DictConfig:
        with in_one_line():
            return compose(task, [*chosen], return_hydra_config=with_hydra)

    try:
        return composed(overrides)
    except ConfigError as error:
        if any(re.split("[=@]", word.lstrip("+~"))[0] in str(error) for word in overrides):
            raise
        for number, word in enumerate(overrides):
            with suppress(ConfigError):
                composed([*overrides[:number], *overrides[number + 1 :]])
                message = f"{word}: {error}"
                break
        else:
            raise
        raise ConfigError(message) from error


def check_option(override: Override, names: Sequence[str], groups: Sequence[str], task: str) -> None:
    """Refuse an unknown option of a group, or a group that the command does not have.

    Raises:
        ConfigError: naming the group's options.
    """
    key, value = override.key_or_group, str(override.value())
    likely = [name for name in names if name != "trained" or task != "train"]
    shown = f"allowed: {', '.join(likely)}" if len(names) < 25 else f"see python {task}.py --help {key}"
    if key not in groups:
        raise ConfigError(
            f"{key} cannot be chosen here: the checkpoint contains model and data; groups: {', '.join(groups)}"
        )
    if override.value() is None and key in UNSET:
        raise ConfigError(f"{override.input_line} cannot be part of a sweep: run the job without {key} separately")
    if override.is_delete() or override.value() is None:
        raise ConfigError(f"{override.input_line}: {key} cannot be left out; {shown}")
    if isinstance(override.value(), dict):
        raise ConfigError(f"{override.input_line}: set single keys, {key}.KEY=VALUE, or choose an option; {shown}")
    if value not in names:
        own = "" if key == "experiment" else "; options of your own need --config-dir DIR"
        raise ConfigError(f"{key}={value} is not an option of {key}{nearest(value, likely)}; {shown}{own}")


def check_structure(raw: Mapping[str, Any], base: Mapping[str, Any], path: str = "") -> None:
    """Refuse unused keys, and groups of keys that were replaced by a value or removed.

    `base` is the configuration composed from the groups alone; keys of a class are checked against its signature
    elsewhere.

    Raises:
        ConfigError: naming the key.
    """
    optional = path.partition(".")[0] in ("callback", "likelihood", "logger", "sampler", "metric", "network", "model")
    for key in base:
        name = f"{path}.{key}".lstrip(".")
        if key not in raw and not optional:
            raise ConfigError(f"{name} cannot be left out: give it a value")
        now = raw.get(key)
        if isinstance(base[key], Mapping) and not (now is None or isinstance(now, Mapping) or "${" in str(now)):
            raise ConfigError(f"{name}={raw[key]} is not possible: {name} is a group of keys{_inside(base[key])}")
    for key, value in raw.items():
        name, component = f"{path}.{key}".lstrip("."), isinstance(value, Mapping) and "_target_" in value
        if key not in base:
            if not component:
                raise ConfigError(f"{name} has no effect: leave it out{_inside(base)}")
        elif isinstance(value, Mapping) and isinstance(base[key], Mapping) and base[key] and not component:
            check_structure(value, base[key], name)


def _inside(node: Mapping[str, Any]) -> str:
    keys = [key for key in node if not key.startswith("_")]
    return f"; existing keys: {', '.join(sorted(keys))}" if keys else ""


def unknown(key: str, keys: Collection[str], groups: Sequence[str], task: str, raw: Mapping[str, Any]) -> str:
    """The error for a key that an unresolved configuration does not have, with similar keys."""
    parent, _, last = key.rpartition(".")
    node = dict(nodes(raw)).get(parent, {})
    known = declared.parameters(parent, node)
    if "_target_" in node and (known is None or last in known):
        return f"{key} is in no file of conf/: write +{key}=... to set the parameter {last} of {node['_target_']}"
    absent = [path for path, value in entries(raw) if value is None and f"{parent}.".startswith(f"{path}.")]
    if absent and parent.startswith("callback."):
        return f"{key} has no effect: there is no {absent[0]} with what is chosen here: leave it out"
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    depth = parent.count(".") + 1 if parent else 0
    siblings = sorted(
        k.split(".")[depth] for k in keys if k.count(".") == depth and k.startswith(f"{parent}." if parent else "")
    )
    where = f"allowed in {parent}" if parent else "allowed"
    close = renamed(key) or similar_keys(key, keys, task) or nearest(key, [*keys, *groups])
    return f"{key} is not a key of the configuration{close}; {where}: {', '.join(dict.fromkeys(siblings))}"


def similar_keys(key: str, keys: Collection[str], task: str) -> str:
    """Keys with the same last part: in the configuration, or else in an option that was not chosen."""
    first, _, last = key.replace("/", ".").rpartition(".")
    same = [k for k in keys if k.rpartition(".")[2] == last and k != key]
    shown = help.KEYS[task if task in help.KEYS else "train"]
    same.sort(key=lambda k: (k.split(".")[0] != first.split(".")[0], k not in shown, k.count("."), k))
    if not same:
        of: dict[str, list[str]] = {}
        for where, k in help.every_key(task if task in help.KEYS else "train"):
            if help.ends(k.name, last):
                of.setdefault(k.name, []).append(where.strip())
        same = [f"{name} with {' or '.join(wheres[:3])}" for name, wheres in of.items()]
    return f" (did you mean {' or '.join(same[:3])}?)" if same else ""


def first_line(error: Exception) -> str:
    """The message of an error of Hydra or OmegaConf in one line, reworded where `MESSAGES` knows it."""
    if str(error).startswith("Error merging override") and error.__cause__ is not None:
        return f"{str(error).split()[-1]}: {first_line(error.__cause__)}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    for pattern, message in MESSAGES:
        found = re.search(pattern, text)
        if found:
            at = re.search(r"full_key: (\S+)", text)
            return message.format(*found.groups(), at=f"{at[1]}: " if at else "")
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(("full_", "object_"))]
    return " ".join(lines[:2]) if lines else type(error).__name__


MESSAGES = (
    (r"Error trying to access .*node `(.+?)` is not a container", "{0} must be a list"),
    (r"Interpolation key '(.+?)' not found", "{at}${{{0}}} refers to a key that does not exist"),
    (r"InterpolationKeyError.*'(.+?)'", "{at}${{{0}}} refers to a key that does not exist"),
    (r"Unsupported interpolation type (\S+)", "{at}${{{0}:...}} is not a resolver: use ${{oc.env:NAME}} or ${{key}}"),
    (r"Environment variable '(.+?)' not found", "{at}the environment variable {0} is not set"),
    (r"Recursive interpolation detected", "{at}keys refer to each other in a circle"),
    (r"An item is already at '(.+?)'", "{0} exists: write {0}=..., without +"),
    (r"'(.+?)' is already in the defaults list", "{0} is chosen already: write {0}=..., without +"),
    (r"looks like a config group override, but config group '(.+?)'", "{0} is not a group: see --help"),
    (r"^(\S+) appears more than once in the final defaults list", "{0} is chosen already: leave it out"),
    (r"Invalid value '(.+?)', expected one of \[(.+?)\]", "{at}{0} must be one of {1}"),
    (r"Cannot delete|Could not delete from config. '(.+?)'", "~{0}: nothing of that name can be removed"),
    (r"Could not delete '(.+?)'", "~{0}: nothing of that name can be removed"),
    (r"Key '(.+?)' is not in struct", "{at}there is no key {0}"),
    (r"Key '(.+?)' not in '(\w+)'", "{at}there is no key {0}"),
    (r"Could not override '(.+?)'", "{0} is neither a key nor a group that is chosen: see --help"),
    (r"Value '(.+?)' of type '\w+' could not be converted to (\w+)", "{at}{0} must be {1}"),
    (r"Interpolation to parent node", "{at}refers to a mapping that contains it"),
    (r"field '(.+?)' is not Optional", "{0} needs a value"),
    (r"Value '(.+?)'.* is not a valid (\w+)", "{at}{0} must be {1}"),
    (r"Cannot assign \w+ to Dict|is not a subclass of \w+", "{at}a mapping is needed"),
    (r"force-add of config groups is not supported: '\+*(.+?)'", "{0} is a group: write it without ++"),
    (r"Sweep parameters '(.+?)' requires", "{0} has several values: give one"),
    (r"Missing mandatory value: (\S+)", "{0} must be given: add {0}=..."),
    (r"(?:In '.*?': )?Could not find '(.+?)'", "{0} does not exist"),
)  # fmt: skip
"""Error messages of Hydra and OmegaConf, and what they mean."""
