"""The data of a run: their module, where they are now, and the classes that a model is conditioned on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.config.packages import RECORD
from diffusion_lab.config.validation import nodes
from diffusion_lab.data import DataModule
from diffusion_lab.data.augmentation import LABELS
from diffusion_lab.errors import ConfigError

USUAL = ("data_dir", "root")
"""Default names of the keys with the location of the data, for classes that do not declare their own."""

DROPOUT = 0.1
"""Default fraction of labels that are dropped in training."""


def data_module(settings: Mapping[str, Any], stage: str) -> DataModule:
    """Build the data module of the settings of group data, prepared and set up for a stage of Lightning.

    Raises:
        ConfigError: for a class that is not a DataModule, and for settings that it refuses.
    """
    target = settings.get("_target_")
    if target is None or not issubclass(resolve(target, "data"), DataModule):
        raise ConfigError(
            f"data._target_={target} is not a diffusion_lab.data.DataModule: derive a class from it whose load() "
            "returns your torch data set, or two of them (train, held_out)"
        )
    data = instantiate(settings, "data")
    data.prepare_data()
    data.setup(stage)
    return data


def places(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a data set that only say where it is stored, as declared by its class."""
    if "_target_" not in settings:
        return ()
    declared = getattr(resolve(settings["_target_"], "data"), "places", USUAL)
    return tuple(key for key in declared if key in settings)


def located(trained: Mapping[str, Any], given: Mapping[str, Any], data_dir: str | None = None) -> dict[str, Any]:
    """Settings of the data that a checkpoint was trained on, with their current location.

    Args:
        trained: configuration of the training; relative paths that do not exist here start where the run was started.
        given: keys that say where the data are, replacing those of `trained`.
        data_dir: the same for data with a single location, whatever its key is called.

    Raises:
        ConfigError: for a key that says anything else.
    """
    settings = dict(trained["data"])
    known = places(settings)
    foreign = [key for key in given if key not in known]
    if foreign:
        allowed = ", ".join(f"data.{key}" for key in known) or "none, these data need no files"
        raise ConfigError(
            f"data.{foreign[0]} is set by the checkpoint: only the location of the data can be given here ({allowed})"
        )
    if data_dir is not None:
        if not known:
            raise ConfigError("data_dir says where the data are, but these data need no files: leave it out")
        given = {"data_dir" if "data_dir" in known else known[0]: data_dir, **given}
    return {**moved(settings, trained.get(RECORD), known), **given}


def moved(settings: Mapping[str, Any], started: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """Resolve relative paths under these keys from where the run was started, if they do not exist here."""
    directory = Path((started or {}).get("directory") or ".")
    paths = {key: settings[key] for key in keys if isinstance(settings.get(key), str)}
    found = {key: directory / value for key, value in paths.items() if not Path(value).expanduser().exists()}
    return {**settings, **{key: str(path) for key, path in found.items() if path.exists()}}


def add_labels(settings: dict[str, Any], data: DataModule) -> None:
    """Write the labels of the data into the settings of a model and of its network: augmentation labels, and classes.

    The network gets `classes`, or `outputs` if it is a classifier, wherever a class in it has this parameter.  A
    checkpoint thus holds the number of classes, their names and frequencies.

    Raises:
        ConfigError: for a network that takes no label.
        ValueError: for data without classes.
    """
    if data.augment:
        add_augmentation(settings["model"], data.augment)
    if not data.conditional:
        return
    model, dropout, counts = settings["model"], settings.get("label_dropout"), data.class_counts()
    predicted = getattr(resolve(model["_target_"], "model"), "PREDICTS_LABELS", False)
    model["labels"] = {
        "_target_": "diffusion_lab.model.Labels",
        "counts": counts,
        "names": None if data.class_names is None else list(data.class_names),
        "dropout": 0 if predicted else DROPOUT if dropout is None else dropout,
    }
    set_everywhere(model["network"], "outputs" if predicted else "classes", len(counts))
    network = resolve(model["network"]["_target_"], "model.network")
    if not predicted and not takes(network, "label"):
        raise ConfigError(
            f"data.conditional=true: {network.__name__}.forward takes no label; define forward(self, x, t, label), "
            f"with label (B,) from 0 to {len(counts)}, where {len(counts)} means no label"
        )


def add_augmentation(model: dict[str, Any], probability: float) -> None:
    """Write the number of augmentation labels into the settings of a model's network.

    Raises:
        ConfigError: for a network that does not take them.
    """
    set_everywhere(model["network"], "augmentation", LABELS)
    network = resolve(model["network"]["_target_"], "model.network")
    if not takes(network, "augmentation"):
        raise ConfigError(
            f"data.augment={probability}: {network.__name__}.forward takes no augmentation labels; define "
            f"forward(self, x, t, augmentation=None), with augmentation (B, {LABELS}), or set data.augment=0"
        )


def set_everywhere(network: dict[str, Any], key: str, value: int) -> None:
    """Set a parameter of a network's class, and of the classes nested in it, wherever they have it."""
    for _, node in nodes(network):
        if "_target_" in node and key in inspect.signature(resolve(node["_target_"], "model.network")).parameters:
            node[key] = value


def takes(network: type, argument: str) -> bool:
    """Whether `forward` of a class has an argument of this name."""
    known = inspect.signature(network.forward).parameters
    return argument in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
