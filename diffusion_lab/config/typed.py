"""Convert values to their declared types, and find the key that the user typed for a value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import declared, schema
from diffusion_lab.config.validation import nodes
from diffusion_lab.errors import ConfigError

REFERENCE = re.compile(r"\$\{([\w.]+)(\[\d+\])?\}")
"""A value that only refers to another key, or to an element of it."""

KEY = re.compile(r"(?<![\w.{])[a-z_]+(\.\w+)*(?==)|(?<![\w.{])[a-z_]+(\.\w+)+")
"""A key in a message: one with a dot, or before a value."""


def convert(config: DictConfig) -> None:
    """Convert values to the types of their parameters if nothing is lost: 1e5 to the int 100000, the tag 1 to a string.

    A value that refers to another key is changed there.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    for path, node in nodes(OmegaConf.to_container(config, resolve=True)):
        known = declared.parameters(path, node) or {}
        for key in known.keys() & node.keys():
            value = schema.converted(known[key].hint, node[key])
            if value is not node[key]:
                OmegaConf.update(config, typed_key(raw, f"{path}.{key}".lstrip(".")), value)


def typed_key(raw: Mapping[str, Any], path: str, whole: bool = True) -> str:
    """The key that a value comes from: `path`, or the key it refers to in the unresolved configuration.

    With `whole`, a reference to one element of a list is not followed.
    """
    for _ in range(20):  # references to references
        node: Any = raw
        parts = path.split(".")
        for depth, part in enumerate(parts):
            node = node.get(part) if isinstance(node, Mapping) else None
            found = REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if found and not (whole and found[2]):
                path = ".".join([found[1], *parts[depth + 1 :]])
                break
        else:
            return path
    return path


@contextmanager
def name_typed_keys(raw: Mapping[str, Any], typed: Collection[str]) -> Iterator[None]:
    """Let errors raised within name the keys that the user typed, if their values come from those.

    Raises:
        ConfigError: the one that was raised within, reworded.
    """
    try:
        yield
    except ConfigError as error:
        names = {found[0]: typed_key(raw, found[0], whole=False) for found in KEY.finditer(str(error))}
        message = KEY.sub(lambda found: names[found[0]] if names[found[0]] in typed else found[0], str(error))
        raise ConfigError(message) from error
