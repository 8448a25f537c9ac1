"""Rules between the keys of a conditional model or a classifier, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lab.config.class_rules import get


def labels_exist(config: Mapping[str, Any]) -> str | None:
    """What is wrong if labels are requested that do not exist, or None; for sample.py the checkpoint decides."""
    if not (config.get("model") and config.get("data")):  # a command without labels
        return None
    data, dropout = config["data"], config.get("label_dropout")
    conditional = data.get("conditional")
    lacking = next((key for key in ("label_column", "attribute") if data.get(key, "") is None), None)
    if get(config, "model.PREDICTS_LABELS") and not conditional:
        return "a classifier needs the labels of the data: set data.conditional=true"
    if conditional and lacking:
        return f"data.conditional=true needs labels, but data.{lacking} is null: set it, or leave conditional false"
    if conditional and data.get("category"):
        return f"data.conditional=true needs classes, but data.category={data['category']} is one class: leave it false"
    if dropout is not None and not conditional:
        return f"label_dropout={dropout} only applies to a conditional model: set data.conditional=true"
    return None
