"""Rules between the keys of labels: of classes and of augmentations, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lab.config import schema
from diffusion_lab.config.class_rules import get, nodes


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


def augmentation_fits(config: Mapping[str, Any]) -> str | None:
    """What is wrong if training images are augmented, or None."""
    probability, shape = get(config, "data.augment"), get(config, "data.shape")
    if not probability or not config.get("model"):
        return None
    if isinstance(shape, list) and len(shape) == 1:
        return f"data.augment={probability} transforms images, but these are points: set data.augment=0"
    if get(config, "data.flip"):
        return f"data.augment={probability} mirrors images too: set data.flip=false"
    classes = [str(node["_target_"]) for _, node in nodes(config.get("network")) if node.get("_target_")]
    ours = classes and all(one.startswith("diffusion_lab.") for one in classes)
    if ours and not any("augmentation" in (schema.parameters(one) or ()) for one in classes):
        return (
            f"data.augment={probability} needs a network that takes augmentation labels, and "
            f"{classes[0].rpartition('.')[2]} does not: set data.augment=0, or choose another network=..."
        )
    return None
