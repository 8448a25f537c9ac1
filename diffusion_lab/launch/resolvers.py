"""Values in conf that depend on other keys: `${at_most_levels:50}`, `${unless:${.snr},2.0e-5}`."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

BETWEEN_LEVELS = ("linear", "log_snr", "karras")
"""Values of sampler.spacing that may use more times than a model has levels."""


def at_most_levels(steps: int | None, *, _root_: DictConfig) -> int | None:
    """A default number of sampler steps, or the model's levels where they are fewer and steps are made of them."""
    levels = OmegaConf.select(_root_, "model.levels") or OmegaConf.select(_root_, "model.process.levels")
    if (
        not (isinstance(steps, int) and isinstance(levels, int))
        or OmegaConf.select(_root_, "sampler.spacing") in BETWEEN_LEVELS
    ):
        return steps
    return min(steps, levels)


def unless(given: Any, value: Any) -> Any:
    """A default that is null once the other of two keys is given."""
    return value if given is None else None


def register() -> None:
    """Make both known to OmegaConf."""
    OmegaConf.register_new_resolver("at_most_levels", at_most_levels, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)
