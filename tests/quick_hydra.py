"""What Hydra and OmegaConf work out again and again from the same files and words, worked out once for each worker.

The tests compose some two thousand configurations, each from forty files of conf/ and forty interpolations.  A result is
kept as long as its file is as it was, and everyone gets a copy of it.  Nothing that this project works out is kept, and a
command that a test starts as a user does is without all this; tests/test_conf.py composes with it and without.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.override_parser import overrides_parser
from omegaconf import OmegaConf, grammar_parser

_files: dict[tuple, Any] = {}
_composed: dict[tuple, Any] = {}
REPLACED = [
    (ConfigRepository, "load_config"), (ConfigLoaderImpl, "_embed_result_config"),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"), (defaults_list, "_create_interpolation_map"),
    (overrides_parser, "create_functions"), (OmegaConf, "load"),
]  # fmt: skip
"""What is replaced, beside the parser of interpolations, which several modules have imported."""
ORIGINAL = {name: vars(owner)[name] for owner, name in REPLACED}


def as_it_is(path: str | os.PathLike[str]) -> tuple:
    """A key for a file with its present contents."""
    path = os.path.abspath(path)
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def load_config(self: ConfigRepository, config_path: str) -> Any:
    """A file of a configuration, its header and its defaults, which nobody may change."""
    source = next((one for one in self.sources if one.is_config(config_path)), None)
    if source is None:
        return None
    key = (source.scheme(), source.provider, source.path, config_path)
    if source.scheme() == "file":
        key += as_it_is(os.path.join(source.path, source._normalize_file_name(config_path)))
    if key not in _files:
        _files[key] = ORIGINAL["load_config"](self, config_path)
    return _files[key]


def embed(result: Any, package: str | None) -> Any:
    """A file's configuration at its package; Hydra copies it there, but not one at the top."""
    if not (result.header["package"] if package is None else package):
        result = copy.copy(result)
        result.config = copy.deepcopy(result.config)
    return ORIGINAL["_embed_result_config"](result, package)


def compose_from(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    """The files of a defaults list, merged: before any key is overridden."""
    files = [(repo.load_config(d.config_path), d) for d in defaults]
    key = tuple((id(file), d.config_path, d.package, d.primary) for file, d in files)
    if key not in _composed:
        _composed[key] = ORIGINAL["_compose_config_from_defaults_list"](self, defaults, repo)
    return copy.deepcopy(_composed[key])


def interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """What interpolations in a defaults list may refer to; made only where it has one."""
    if any(one.is_interpolation() for one in defaults):
        return ORIGINAL["_create_interpolation_map"](overrides, defaults, self_added)
    return None


def load(file: Any) -> Any:
    """A YAML file."""
    if not isinstance(file, (str, os.PathLike)):
        return ORIGINAL["load"](file)
    key = as_it_is(file)
    if key not in _files:
        _files[key] = ORIGINAL["load"](file)
    return copy.deepcopy(_files[key])


NEW = {
    "load_config": load_config, "_embed_result_config": staticmethod(embed),
    "_compose_config_from_defaults_list": compose_from, "_create_interpolation_map": interpolation_map,
    "create_functions": functools.cache(ORIGINAL["create_functions"]), "load": staticmethod(load),
}  # fmt: skip


def install() -> None:
    """Replace them in this process."""
    for owner, name in REPLACED:
        setattr(owner, name, NEW[name])
    parse = grammar_parser.parse
    if not hasattr(parse, "cache_info"):
        kept = functools.lru_cache(10_000)(parse)
        for module in [one for one in sys.modules.values() if getattr(one, "parse", None) is parse]:
            module.parse = kept
