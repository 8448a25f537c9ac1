"""Configuration directories: the package's own, and those of the user that add options."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from diffusion_lab.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]

CONF = next((p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if (p / "train.yaml").is_file()), PACKAGE / "conf")
"""The main configuration directory: inside an installed package, beside the package in a checkout."""

SEARCH = "hydra.searchpath"

PARTS = ("sampler/predictor", "sampler/corrector", "control/operator")
"""Groups nested in another group."""

NOT_A_LIST = f"{SEARCH} is a list, such as {SEARCH}=[file:///my/conf]"


def with_directories(overrides: Sequence[str], directory: str | None) -> list[str]:
    """Overrides whose search path starts with a `--config-dir`, all directories absolute: for every rank of a run.

    Raises:
        ConfigError: for a directory that does not exist.
    """
    kept = [word for word in overrides if not word.lstrip("+~").startswith(f"{SEARCH}=")]
    found = [directory] * bool(directory) + [place for word in overrides if word not in kept for place in listed(word)]
    return [*kept, *searching([folder(p) if p.startswith("file://") or "://" not in p else p for p in found])]


def searching(found: Sequence[str]) -> list[str]:
    """The override that adds these directories or packages to Hydra's search path; empty for none."""
    quoted = (QuotedString(p if "://" in p else f"file://{p}", Quote.single).with_quotes() for p in found)
    return [f"{SEARCH}=[{','.join(dict.fromkeys(quoted))}]"] if found else []


def listed(word: str) -> list[str]:
    """The entries of an override of Hydra's search path."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        raise ConfigError(f"{word}: {NOT_A_LIST}") from error
    value = override.value()
    if not isinstance(value, list):
        raise ConfigError(f"{word}: {NOT_A_LIST}")
    return [entry.text if isinstance(entry, QuotedString) else str(entry) for entry in value]


def folder(place: str) -> str:
    """The absolute path of a directory of configurations.

    Raises:
        ConfigError: if it does not exist.
    """
    path = Path(place.removeprefix("file://")).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory: --config-dir needs an existing directory of configurations")
    return str(path.resolve())


def directories(overrides: Sequence[str], main: str | None = None) -> tuple[Path, ...]:
    """The configuration directories of a command: the main one, then those that its overrides add."""
    added = [place for word in overrides if word.startswith(f"{SEARCH}=") for place in listed(word)]
    return (Path(main) if main else CONF, *(path for place in added if (path := _directory(place)) is not None))


def _directory(place: str) -> Path | None:
    """The directory of an entry of the search path; None for a package that does not exist."""
    if not place.startswith("pkg://"):
        return Path(place.removeprefix("file://"))
    name = place.removeprefix("pkg://").replace("/", ".")
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        return None
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def groups(found: Sequence[Path]) -> list[str]:
    """Names of all groups of options."""
    names = {folder.name for place in found if place.is_dir() for folder in place.iterdir() if folder.is_dir()}
    return [*sorted(names), *PARTS]


def options(group: str, found: Sequence[Path] = (CONF,)) -> list[str]:
    """Names of a group's options in all directories, without those of nested groups."""
    files = [(place, path) for place in found for path in (place / group).rglob("*.yaml")]
    names = {path.relative_to(place).with_suffix("").as_posix() for place, path in files}
    inner = tuple(f"{part}/" for part in PARTS if part != group)
    return sorted(name.removeprefix(f"{group}/") for name in names if not name.startswith(inner))


def option_file(group: str, name: str, found: Sequence[Path] = (CONF,)) -> Path:
    """The file of an option: like Hydra, the one in the first directory that has it."""
    files = [place / group / f"{name}.yaml" for place in found]
    return next((file for file in files if file.is_file()), files[0])
