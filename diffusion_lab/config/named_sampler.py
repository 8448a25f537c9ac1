"""Samplers by their names, with the settings that conf/sampler gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lab.config.compose import composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.refusals import in_our_words
from diffusion_lab.config.validation import nearest
from diffusion_lab.errors import ConfigError


def sampler_settings(
    name: str, variance: str | None, keys: Sequence[str] = (), steps: int | None = None
) -> dict[str, Any]:
    """Settings of a sampler by its name, and keys of it as on a command line, such as spacing=quadratic.

    Args:
        steps: of a sampler that has no number of its own; None takes every level.

    Raises:
        ConfigError: for a name or a key that does not exist.
    """
    names = [known for known in options("sampler") if known not in ("trained", "custom")]
    if name not in names:
        raise ConfigError(f"{name} is no sampler{nearest(name, names)}; choose from {', '.join(names)}")
    words = [f"sampler={name}", *(f"sampler.{key}" for key in keys), "ckpt_path=.", f"variance={variance}"]
    words += [f"sampler_steps={steps}"] if steps else []
    with in_our_words():
        return plain(composed("sample", words))["sampler"]


def named_sampler(config: Mapping[str, Any], name: str) -> Any:
    """The sampler of a name as `sample.py sampler=<name>` builds it for a model that was trained with a configuration.

    Raises:
        ConfigError: if there is none of that name.
    """
    variance = config.get("variance") or "fixed_large"
    return instantiate(sampler_settings(name, variance, steps=config.get("sampler_steps")), "sampler")
