"""The settings of a run in groups, each with the value in its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_lab.config.class_rules import leaves

NOT_SHOWN = ("choices", "overrides", "paths", "started", "ckpt_path", "model_digest", "weights_digest", "revision")
"""Top-level keys that are not settings, or are shown elsewhere."""

OTHER = "general"
"""Group of the keys at the top level."""

REPEATING = ("callback", "loss", "model")
"""Groups that also repeat keys of the top level."""

OF_THE_DATA = re.compile(r"model\.(labels\.|network\.(.*\.)?(classes|outputs|augmentation)$)")
"""Settings of a model that a training takes from its data, and no recipe has."""


@dataclass(frozen=True)
class Setting:
    """A key with its value, and that of the recipe if it differs."""

    key: str
    value: str
    recipe: str = ""
    differs: bool = False


def groups(settings: Mapping[str, Any], recipe: Mapping[str, Any] | None) -> dict[str, list[Setting]]:
    """Group -> its settings.  A key that only repeats another one is left out."""
    values, before = leaves(settings), leaves(recipe or {})
    found: dict[str, list[Setting]] = {}
    for key, value in values.items():
        group, _, rest = key.partition(".")
        if group in NOT_SHOWN or key.endswith(".run_dir") or repeats(key, values):
            continue
        differs = recipe is not None and before.get(key, ...) != value and not OF_THE_DATA.match(key)
        was = text(before[key]) if differs and key in before else "not set" if differs else ""
        name = key.removesuffix("._target_") + " (class)" * key.endswith("._target_")
        found.setdefault(group if rest else OTHER, []).append(Setting(name, text(value), was, differs))
    return dict(sorted(found.items(), key=lambda item: item[0] != OTHER))


def repeats(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key only repeats a shorter one, as model.network.channels does network.channels."""
    group, *inner = key.split(".")
    last = len(inner) if group in REPEATING else len(inner) - 1
    return any(values.get(".".join(inner[i:]), ...) == values[key] for i in range(last))


def text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
