"""Labels and guidance: which ones a model is trained with, and which ones its samples have."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig

from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.config.validation import nodes
from diffusion_lab.data import DataModule
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.guidance import Guidance
from diffusion_lab.model import Model
from diffusion_lab.run.sample_spec import digest_of

DROPOUT = 0.1
"""Default fraction of labels that are dropped in training."""


def add_labels(settings: dict[str, Any], data: DataModule) -> None:
    """Write the classes of the data into the settings of a conditional model and of its network.

    The network gets `classes` wherever a class in it has a parameter of that name.  A checkpoint thus holds the number
    of classes, their names and frequencies.

    Raises:
        ConfigError: for a network that takes no label.
        ValueError: for data without classes.
    """
    if not data.conditional:
        return
    dropout = settings.get("label_dropout")
    model, counts = settings["model"], data.class_counts()
    model["labels"] = {
        "_target_": "diffusion_lab.model.Labels",
        "counts": counts,
        "names": None if data.class_names is None else list(data.class_names),
        "dropout": DROPOUT if dropout is None else dropout,
    }
    for node in built(model["network"]):
        if "classes" in inspect.signature(resolve(node["_target_"], "model.network")).parameters:
            node["classes"] = len(counts)
    network = resolve(model["network"]["_target_"], "model.network")
    taken = inspect.signature(network.forward).parameters
    if "label" not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise ConfigError(
            f"data.conditional=true: {network.__name__}.forward takes no label; define forward(self, x, t, label), "
            f"with label (B,) from 0 to {len(counts)}, where {len(counts)} means no label"
        )


def built(node: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a network's settings from which an object is built."""
    return (one for _, one in nodes(node) if "_target_" in one)


def choose_guidance(chosen: dict[str, Any] | None, trained: dict[str, Any]) -> Guidance | None:
    """The guidance that the command names, or the checkpoint's with the given keys replaced.

    Raises:
        ConfigError: for keys without a guidance.
    """
    given = {k: v for k, v in (chosen or {}).items() if v is not None}
    if HydraConfig.get().runtime.choices.guidance == "trained":
        own = trained.get("guidance") or {}
        if given and not own:
            key, value = next(iter(given.items()))
            raise ConfigError(
                f"guidance.{key}={value} needs a guidance: choose guidance=classifier_free or autoguidance"
            )
        given = {**own, **given}
    return instantiate(given, "guidance") or None


def conditioning_spec(model: Model) -> dict[str, Any]:
    """The part of a sample spec that only models with labels or guidance have."""
    asked: dict[str, Any] = {}
    if model.labels is not None:
        asked["label"] = model.labels.numbers(model.label) or model.labels.describe(model.label)
    if model.guidance is not None:
        settings = vars(model.guidance).items()
        asked["guidance"] = {"kind": type(model.guidance).__name__} | {
            key: digest_of(value) if isinstance(value, Denoiser) else value for key, value in settings
        }
    return asked


def refuse_guided(model: Model, likelihoods: Mapping[str, Any]) -> None:
    """Refuse a likelihood together with guidance.

    Raises:
        ConfigError: with the key that allows it.
    """
    for name, likelihood in likelihoods.items():
        if getattr(model.guidance, "scale", 1) != 1 and not likelihood.guided_field:
            raise ConfigError(
                f"likelihood={name} with guidance: the density of a guided field is not the likelihood of the model; "
                f"leave out guidance, or compute that density anyway with likelihood.{name}.guided_field=true"
            )


def described(model: Model) -> dict[str, Any]:
    """The labels and the guidance of the samples, for a results record; empty where there are none."""
    labels = {} if model.labels is None else {"labels": model.labels.describe(model.label)}
    return labels | ({} if model.guidance is None else {"guidance": str(model.guidance)})
