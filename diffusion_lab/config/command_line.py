"""A command line that Hydra can parse: options first, then key=value, quoted where its grammar needs it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from diffusion_lab.config import directories
from diffusion_lab.errors import ConfigError

SETTING = re.compile(r"([~+]{0,2}[\w./@:-]+)=(.*)", re.DOTALL | re.ASCII)
"""Pattern of key=value."""

STRUCTURED = re.compile(r"[\[{'\"]|\w+\(|.*\$\{", re.DOTALL)
"""Pattern of a list, a mapping, a quoted string, a function or an interpolation: anything but plain text."""

QUOTE = Quote.single


def tidy(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line, options first and every setting quoted so that Hydra can parse it.

    Raises:
        ConfigError: for an unknown option, an option without its value, and a word that is not key=value.
    """
    options, settings = separate(arguments)
    parser = OverridesParser.create()
    return [*options, *(readable(word, parser) for word in settings)]


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options with their full names and values, the other arguments) of a command line."""
    known = {name: action for action in get_args_parser()._actions for name in action.option_strings}
    options: list[str] = []
    settings: list[str] = []
    left = [word for word in arguments if word != "--"]
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            settings.append(word)
            continue
        name, value = named(word, known)
        action = known[name]
        if action.nargs is None and value is None and not (left and not left[0].startswith("-")):
            raise ConfigError(f"{name} needs a value{choices(action)}")
        if value is None and left and (action.nargs is None or (action.nargs == "?" and left[0] in action.choices)):
            value = left.pop(0)
        value = action.const if value is None and action.nargs == "?" else value
        if value is not None and action.choices and value not in action.choices:
            raise ConfigError(f"{name} {value} does not exist{choices(action)}")
        full = next(option for option in action.option_strings if option.startswith("--"))
        options.append(full if value is None else f"{full}={value}")
    refuse_combinations({option.partition("=")[0] for option in options})
    return options, settings


def refuse_combinations(given: Set[str]) -> None:
    """Refuse options that contradict each other or have no effect."""
    if "--experimental-rerun" in given:
        raise ConfigError("--experimental-rerun is not supported: resume a run with ckpt_path=RUN")
    if "--run" in given and "--multirun" in given:
        raise ConfigError("--run and --multirun contradict each other: leave one out")
    for name in ("--resolve", "--package"):
        if name in given and not {"--cfg", "--info"} & given:
            raise ConfigError(f"{name} only applies to --cfg: add --cfg job")


def named(word: str, known: dict[str, argparse.Action]) -> tuple[str, str | None]:
    """(name, value) of the option in an argument; the name may be abbreviated, the value None.

    Raises:
        ConfigError: for an unknown option.
    """
    name, equals, value = word.partition("=")
    long = [option for option in known if option.startswith(name) and name.startswith("--")]
    found = name if name in known else long[0] if len(long) == 1 else None
    if found is None and not word.startswith("--") and word[:2] in known and known[word[:2]].nargs is None:
        return word[:2], word[2:]
    if found is None or (equals and known[found].nargs == 0):
        setting = word.lstrip("-")
        hint = f"write {setting}" if "=" in setting else "settings are written key=value"
        shown = ", ".join(option for option in known if option.startswith("--"))
        raise ConfigError(f"unknown option {word}: {hint}, without dashes; options: {shown}")
    return found, value if equals else None


def choices(action: argparse.Action) -> str:
    """The allowed values of an option, as the end of a sentence."""
    return f": choose {', '.join(action.choices)}" if action.choices else ""


def readable(word: str, parser: OverridesParser) -> str:
    """A setting as given, or with its value quoted where Hydra's grammar cannot parse it: ~/x, a=b, (1).

    Raises:
        ConfigError: for what is not key=value, and for a list, a mapping or a string that is not closed.
    """
    if parses(word, parser) and not word.startswith("="):
        return word
    found = SETTING.fullmatch(word)
    if found is None:
        raise ConfigError(f"{word!r} is not a setting: write key=value, such as seed=1")
    key, value = found.groups()
    parts = [os.path.expanduser(part) for part in value.split(",")]
    quoted = ",".join(p if p and parses(f"a={p}", parser) else QuotedString(p, QUOTE).with_quotes() for p in parts)
    if STRUCTURED.match(value) or not parses(f"{key}={quoted}", parser):
        raise ConfigError(
            f"{word} cannot be parsed: write a list as [a,b], a mapping as {{a:1}}, a reference as ${{key}}, and quote "
            f"""a text with such characters: '{key}="..."'"""
        )
    return f"{key}={quoted}"


def parses(word: str, parser: OverridesParser) -> bool:
    """Whether Hydra can parse a setting."""
    try:
        parser.parse_override(word)
    except HydraException:
        return False
    return True


OPTIONS = ("--config-name", "--config-path", "--config-dir")
"""Hydra's options that decide what is composed; every rank of a run gets them."""


def parse(arguments: Sequence[str]) -> Any:
    """Hydra's command line, parsed: `overrides`, `multirun`, `config_name`, ..."""
    return get_args_parser().parse_args(list(arguments))


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options, overrides) of a command line as `tidy` returns it."""
    flags = [word for word in arguments if word.startswith("-")]
    return flags, [word for word in arguments if word not in flags]


def options(arguments: Sequence[str]) -> list[str]:
    """The `OPTIONS` that a command line as `tidy` returns it has."""
    return [word for word in arguments if word.partition("=")[0] in OPTIONS]


def with_absolute_directories(arguments: Sequence[str]) -> list[str]:
    """A command line as `tidy` returns it, with absolute configuration directories, the additional ones as an override.

    All ranks of a run get the overrides; flags would reach the first one only.
    """
    flags, overrides = split(arguments)
    given = dict(flag.partition("=")[::2] for flag in flags)
    for name in ("--config-dir", "--config-path"):
        if name in given and not given[name]:
            raise ConfigError(f"{name} needs a directory: {name}=DIR")
    main = [f"--config-path={directories.folder(given['--config-path'])}"] if "--config-path" in given else []
    kept = [flag for flag in flags if flag.partition("=")[0] not in ("--config-dir", "--config-path")]
    return [*main, *kept, *directories.with_directories(overrides, given.get("--config-dir"))]


def override(key: str, value: str) -> str:
    """`key=value`, quoted so that Hydra parses the value back unchanged."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def own_keys(arguments: Sequence[str], *keys: str) -> tuple[dict[str, str], list[str]]:
    """(values of a command's own keys, its other arguments)."""
    own = [word for word in arguments if "=" in word and word.partition("=")[0] in keys]
    return dict(word.split("=", 1) for word in own), [word for word in arguments if word not in own]


def run_and_keys(arguments: Sequence[str], *keys: str) -> tuple[str, dict[str, str], list[str]]:
    """(run, values of the command's own keys, other arguments) of a command whose first argument is a run.

    Raises:
        ConfigError: if it starts with a setting.
    """
    run, *rest = arguments
    if "=" in run and not Path(run).exists():
        raise ConfigError(f"{run} is not a run: give the run first, then {keys[0]}=...")
    return run, *own_keys(rest, *keys)


def only_overrides(arguments: list[str], module: str) -> list[str]:
    """The overrides of a command whose only flag is --config-dir.

    Raises:
        ConfigError: for another flag.
    """
    flags, overrides = split(with_absolute_directories(tidy(arguments)))
    if "--multirun" in flags:
        raise ConfigError(f"-m: train and sample sweep, {module} takes one value of each setting")
    if flags:
        raise ConfigError(f"unknown option {flags[0]}: see python -m diffusion_lab.{module} --help")
    return overrides
