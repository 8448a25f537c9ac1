"""Rules between keys that classes declare as literals, read from their source: `ORDERED`, `ANY_OF` and `REFUSES`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from diffusion_lab.config import schema


def entries(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration, mappings included, with its dotted path; nothing of any other value."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        name = f"{path}.{key}".lstrip(".")
        yield name, value
        yield from entries(value, name)


def nodes(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of a configuration with its dotted path."""
    return ((path, value) for path, value in (("", node), *entries(node)) if isinstance(value, Mapping))


def leaves(node: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a nested configuration that is not a mapping, by its dotted path."""
    return {path: value for path, value in entries(node) if not isinstance(value, Mapping)}


def missing(node: Any) -> list[str]:
    """The keys that must be given, and are not."""
    return [path for path, value in entries(node) if value == "???"]


def get(config: Any, path: str) -> Any:
    """The value of a dotted key, or None.

    A last part in capitals is a constant of the class at that key; NAME() is whether this class has such a method.
    """
    for key in path.split("."):
        if not isinstance(config, Mapping):
            return None
        if key.endswith("()"):
            config = schema.has_method(str(config.get("_target_") or ""), key.removesuffix("()"))
        else:
            config = next(iter(_constants(config, key)), None) if key.isupper() else config.get(key)
    return config


def _constants(node: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    return schema.constants(str(node.get("_target_") or ""), name)


def complaint(config: Mapping[str, Any]) -> str | None:
    """What the classes of a configuration refuse, or None."""
    return next((reason for path, node in nodes(config) for reason in _reasons(config, path, node)), None)


def _reasons(config: Mapping[str, Any], path: str, node: Mapping[str, Any]) -> Iterator[str]:
    ordered, any_of = (c if isinstance(c := get(node, name), tuple) else () for name in ("ORDERED", "ANY_OF"))
    for low, high in ordered:
        a, b = node.get(low), node.get(high)
        if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not a < b:
            yield f"{path}.{low}={a} must be less than {path}.{high}={b}"
    for keys in any_of:
        if not any(node.get(key) for key in keys):
            yield f"{path} has neither {' nor '.join(keys)}: choose {' or '.join(f'{path}/{key}=...' for key in keys)}"
    for refused in (one for one in _constants(node, "REFUSES") if isinstance(one, dict)):
        for key, reason in refused.items():
            name, equals, value = key.partition("=")
            found = get(config, name)
            if (found is not None and found == yaml.safe_load(value)) if equals else found:
                yield f"{str(node['_target_']).rpartition('.')[2]} {reason}"
