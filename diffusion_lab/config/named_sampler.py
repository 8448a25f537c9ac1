"""Samplers by name, with their settings in conf/sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lab.config.compose import composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.refusals import in_one_line
from diffusion_lab.config.validation import nearest
from diffusion_lab.errors import ConfigError


def sampler_settings(
    name: str, variance: str | None, keys: Sequence[str] = (), steps: int | None = None
) -> dict[str, Any]:
    """Settings of a sampler by name, with overrides of its keys, such as spacing=quadratic.

    Args:
        steps: for a sampler without a number of its own; None uses every level.

    Raises:
        ConfigError: for a name or a key that does not exist.
    """
    names = [known for known in options("sampler") if known not in ("trained", "custom")]
    if name not in names:
        raise ConfigError(f"unknown sampler {name}{nearest(name, names)}; choose from {', '.join(names)}")
    words = [f"sampler={name}", *(f"sampler.{key}" for key in keys), "ckpt_path=.", f"variance={variance}"]
    words += [f"sampler_steps={steps}"] if steps else []
    with in_one_line():
        return plain(composed("sample", words))["sampler"]


def named_sampler(config: Mapping[str, Any], name: str) -> Any:
    """The sampler that `sample.py sampler=<name>` builds for a model trained with this configuration.

    Raises:
        ConfigError: for an unknown name.
    """
    variance = config.get("variance") or "fixed_large"
    return instantiate(sampler_settings(name, variance, steps=config.get("sampler_steps")), "sampler")
