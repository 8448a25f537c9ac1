"""What must hold between the keys of a conditional model, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def labels_exist(config: Mapping[str, Any]) -> str | None:
    """A complaint about labels that are asked for and not there, or None; of sample.py the checkpoint decides."""
    if not (config.get("model") and config.get("data")):  # of a command that takes no part in labels
        return None
    data, guidance, dropout = (config.get(key) for key in ("data", "guidance", "label_dropout"))
    conditional = data.get("conditional")
    lacking = next((key for key in ("label_column", "attribute") if data.get(key, "") is None), None)
    if conditional and lacking:
        return f"data.conditional=true needs labels, and data.{lacking}=null gives none: name one, or leave it false"
    if conditional and data.get("category"):
        return f"data.conditional=true needs classes, and data.category={data['category']} is one: leave it false"
    if dropout is not None and not conditional:
        return f"label_dropout={dropout} drops the labels of a conditional model: set data.conditional=true"
    if not guidance:
        return None
    if "_target_" not in guidance:
        return "guidance=trained only makes sense for sample.py: choose none, classifier_free or autoguidance"
    if str(guidance["_target_"]).endswith(".ClassifierFree") and not (conditional and dropout != 0):
        return "guidance=classifier_free needs a model with dropped labels: data.conditional=true, label_dropout > 0"
    return None
