"""Values in conf that depend on other keys: `${at_most_levels:50}`, `${unless:${.snr},2.0e-5}`."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

BETWEEN_LEVELS = ("linear", "log_snr", "karras", "explicit")
"""Values of sampler.spacing that may use more times than a model has levels."""


def at_most_levels(steps: int | None, repeats: str | None = None, *, _root_: DictConfig) -> int | None:
    """A default number of sampler steps, or the number of the model's levels if that is smaller and limits the steps.

    For "distinct" steps the limit is lower with spacing=quadratic, i^2 0.8 N / (S - 1)^2, which repeats low levels.
    """
    levels = OmegaConf.select(_root_, "model.levels") or OmegaConf.select(_root_, "model.process.levels")
    spacing = OmegaConf.select(_root_, "sampler.spacing")
    if not (isinstance(steps, int) and isinstance(levels, int)) or spacing in BETWEEN_LEVELS:
        return steps
    if repeats == "distinct" and spacing == "quadratic":
        levels = 1 + math.isqrt(4 * levels // 5)
    return min(steps, levels)


def unless(given: Any, value: Any) -> Any:
    """A default that is null if another key is given."""
    return value if given is None else None


def register() -> None:
    """Register both resolvers with OmegaConf."""
    OmegaConf.register_new_resolver("at_most_levels", at_most_levels, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)
