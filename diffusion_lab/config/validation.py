"""Refuse a configuration that cannot work, in one line, before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from diffusion_lab import first_edition
from diffusion_lab.config import declared, schema
from diffusion_lab.config.class_rules import get, nodes
from diffusion_lab.config.instantiate import allowed, refused
from diffusion_lab.config.rules import RULES
from diffusion_lab.errors import ConfigError


def nearest(word: str, allowed: Iterable[str], least: float = 0.5) -> str:
    """ " (did you mean X?)" for the closest of the allowed words, if that is at least so similar."""
    close = difflib.get_close_matches(word, list(map(str, allowed)), 1, least)
    return f" (did you mean {close[0]}?)" if close else ""


def renamed(key: str) -> str:
    """The name that a key of earlier versions has now; empty for any other key."""
    if key in first_edition.PREFIXES:
        return f" ({key} is called {first_edition.PREFIXES[key]} now)"
    last = key.rpartition(".")[2]
    return f" ({last} is called {first_edition.KEYS[last]} now)" if last in first_edition.KEYS else ""


def validate(config: Mapping[str, Any]) -> None:
    """Check a resolved plain configuration against the signatures of its classes and the rules between keys.

    Raises:
        ConfigError: naming the key, what is wrong and what is allowed.
    """
    for path, node in nodes(config):
        check_signature(path, node)
    for rule in RULES:
        complaint = rule(config)
        if complaint:
            raise ConfigError(complaint)


def check_network_fits_data(config: Mapping[str, Any]) -> None:
    """Refuse an image network for points and a point network for images, among ours; the rehearsal tries others.

    Raises:
        ConfigError: naming the network to choose.
    """
    shape = get(config, "data.shape")
    points = get(config, "network.dimensions") is not None or get(config, "network.network.dimensions") is not None
    ours = str(get(config, "network._target_") or "").startswith("diffusion_lab.")
    if ours and isinstance(shape, list) and shape and (len(shape) == 1) != points:
        wanted = "network=mlp" if len(shape) == 1 else "an image network, such as network=unet_small"
        raise ConfigError(f"this network cannot take data of shape {list(shape)}: use {wanted}")


def check_signature(path: str, node: Mapping[str, Any]) -> None:
    """A node's keys and values against the signature of its class."""
    target = str(node.get("_target_") or "")
    if "_target_" in node and not target:
        raise ConfigError(
            f"{path}._target_={node['_target_']} names no class: give one, or leave it all out with {path}=null"
        )
    if target and not allowed(target):
        raise refused(path, target)
    ours, known = target.startswith("diffusion_lab."), declared.parameters(path, node)
    if known is None and ours:
        raise ConfigError(f"{path}._target_={target} does not exist")
    for key, value in node.items() if known is not None else ():
        if key in ("_target_", "_partial_") or (not target and key not in known):
            continue
        if key not in known:
            raise ConfigError(
                f"{path}.{key} is not a parameter of {target}{renamed(key) or nearest(key, known)}; "
                f"allowed: {', '.join(known)}"
            )
        reason = schema.mismatch(known[key], value)
        if reason:
            name = f"{path}.{key}".lstrip(".")
            raise ConfigError(f"{name}={value!r} {reason}{nearest(str(value), known[key].options)}")
    needed = known if ours else declared.here(path, node) if path == "trainer" else {}
    missing = [k for k, p in needed.items() if p.required and k not in node]
    if missing and not node.get("_partial_"):
        raise ConfigError(f"{path} needs a value for {', '.join(missing)}")
