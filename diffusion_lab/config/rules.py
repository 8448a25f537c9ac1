"""Rules between keys that no class knows alone: each function returns what is wrong with a configuration, or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config import class_rules, schema, trainer_keys
from diffusion_lab.config.class_rules import get, nodes
from diffusion_lab.config.environment import disagreement, local_ranks
from diffusion_lab.config.init_source import missing_checkpoint, missing_pairs, missing_source
from diffusion_lab.config.network_size import network_takes_size
from diffusion_lab.config.resolvers import BETWEEN_LEVELS
from diffusion_lab.memory import memory_of_machine

MASK = "diffusion_lab.control.Mask"


def ranks(config: Mapping[str, Any]) -> int | None:
    """Number of ranks of a training; None where it depends on the machine."""
    trainer = config.get("trainer") or {}
    count = local_ranks(trainer)
    return count and count * (trainer.get("num_nodes") or 1)


def batch_divides(config: Mapping[str, Any]) -> str | None:
    """Each rank has an equal part of a batch."""
    world, batch = ranks(config), (config.get("data") or {}).get("batch_size")
    if world is None or not isinstance(batch, int) or batch % world == 0:
        return None
    return f"data.batch_size={batch} cannot be split evenly over {world} devices: use a multiple of {world}"


def batch_fits_memory(config: Mapping[str, Any]) -> str | None:
    """The float32 values of one rank's batch alone fit into this machine's memory."""
    data = config.get("data") or {}
    shape, batch = data.get("shape") or [], data.get("batch_size", 1)
    if not all(isinstance(number, int) for number in (*shape, batch)):
        return None
    size = 4 * math.prod(shape) * math.ceil(batch / (ranks(config) or 1))
    if size <= (memory := memory_of_machine()):
        return None
    return (
        f"data.shape={list(shape)} with data.batch_size={batch}: a batch takes {size / 2**30:,.0f} GiB, and "
        f"this machine has {memory / 2**30:,.0f} GiB of memory: use a smaller shape or batch"
    )


def labels_exist(config: Mapping[str, Any]) -> str | None:
    """Labels that are requested exist; for sample.py the checkpoint decides."""
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
    """Training images can be augmented, and the network is told how they were."""
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


def control_has_its_files(config: Mapping[str, Any]) -> str | None:
    """A control has the files that it needs; whether they fit the model is found when they are read."""
    control = config.get("control") or {}
    if not control:
        return None
    if not config.get("guide"):
        return "control=... needs a guide: guide=FILE or guide=FOLDER of images"
    operator, mask = control.get("operator"), config.get("mask")
    masked = isinstance(operator, Mapping) and operator.get("_target_") == MASK
    if masked and not mask:
        return "this control needs mask=FILE: white where pixels are generated, black where they are kept"
    if mask and operator and not masked:
        return f"mask={mask}: this control takes no mask: leave it out, or choose control/operator=mask"
    missing = [key for key in ("guide", "mask") if config.get(key) and not Path(config[key]).expanduser().exists()]
    return f"{missing[0]}={config[missing[0]]} does not exist: an image file or a folder is needed" if missing else None


def steps_within_levels(config: Mapping[str, Any]) -> str | None:
    """A discrete process has no more steps than levels, unless the sampler may stop between them."""
    steps, levels = get(config, "sampler.steps"), get(config, "model.levels") or get(config, "model.process.levels")
    if not (isinstance(steps, int) and isinstance(levels, int)) or steps <= levels:
        return None
    if get(config, "sampler.spacing") in BETWEEN_LEVELS:
        return None
    return f"sampler.steps={steps} is more than the model's {levels} levels: use at most {levels}"


def sde_belongs(config: Mapping[str, Any]) -> str | None:
    """Group sde is the process of some models only."""
    known = schema.parameters(str(get(config, "model._target_") or ""))
    if config.get("sde") and known is not None and "process" not in known:
        return (
            "sde=... chooses the process of model=score_sde or classifier: add model=score_sde or model=classifier, or "
            "leave it out"
        )
    return None


def groups_are_complete(config: Mapping[str, Any]) -> str | None:
    """A training has no checkpoint whose sampler or guidance it could take."""
    sampler, guidance = config.get("sampler") or {}, config.get("guidance") or {"_target_": None}
    if config.get("model") and "_target_" not in sampler:
        return "sampler=trained only makes sense for sample.py: choose ancestral, ddim, ..."
    if config.get("model") and "_target_" not in guidance:
        return "guidance=trained only makes sense for sample.py: choose none, classifier_free, classifier, ..."
    return None


RULES: tuple[Callable[[Mapping[str, Any]], str | None], ...] = (
    disagreement,
    missing_checkpoint,
    missing_source,
    missing_pairs,
    batch_divides,
    batch_fits_memory,
    groups_are_complete,
    steps_within_levels,
    class_rules.complaint,
    sde_belongs,
    network_takes_size,
    trainer_keys.complaint,
    labels_exist,
    augmentation_fits,
    control_has_its_files,
)
"""In the order in which they are checked."""
