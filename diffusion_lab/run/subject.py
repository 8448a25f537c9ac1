"""The model to sample from: that of a checkpoint, with the command's sampler, likelihoods and guidance or its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from diffusion_lab import checkpoint
from diffusion_lab.config.compose import plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.guidance import Guidance
from diffusion_lab.model import Model
from diffusion_lab.run.control import choose_control
from diffusion_lab.storage import checkpoint_file, run_directory


@dataclass(frozen=True)
class Subject:
    """The model to sample from, its checkpoint, and the name and settings of the sampler."""

    path: Path
    contents: dict[str, Any]
    model: Model
    sampler: str
    settings: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of training steps of the model."""
        return self.contents["global_step"]


def load(config: DictConfig) -> Subject:
    """Load the model of the checkpoint with the chosen sampler and likelihoods; refuse those that do not fit."""
    path = run_directory.find(config.ckpt_path, config.paths.log_dir)
    contents = checkpoint_file.read(path)
    model = checkpoint.build(contents, config.weights)
    if not isinstance(model, Model):
        raise ConfigError(
            f"{os.path.relpath(path)} holds a classifier, which has no samples: sample from a model, and guide it by "
            f"guidance=classifier guidance.ckpt_path={path}"
        )
    name, settings = choose_sampler(config, contents["config"])
    with as_config_error(ValueError, message=f"{{}} ({os.path.relpath(path)})"):
        model.sampler, model.label = instantiate(settings, "sampler"), plain(config)["label"]
        model.guidance = choose_guidance(plain(config)["guidance"], contents["config"]["model"])
        model.control = choose_control(config, model)
        model.check_sampling(config.seed)
        if config.trajectory and not hasattr(model.sampler, "trajectory"):
            raise ConfigError(f"trajectory=true: {type(model.sampler).__name__} has no trajectory(...): leave it out")
        model.likelihood = choose_likelihood(config, model)
    return Subject(path, contents, model, name, settings)


def choose_sampler(config: DictConfig, trained: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (name, settings) of the sampler: the one chosen, or the checkpoint's with the given keys replaced."""
    config.variance = config.variance or trained.get("variance", "fixed_large")
    config.sampler_steps = config.sampler_steps or trained.get("sampler_steps")
    with open_dict(config):
        config.model = {key: trained["model"].get(key) for key in ("levels", "process")}  # of `at_most_levels`
    chosen = plain(config)["sampler"]
    if "_target_" in chosen:
        return HydraConfig.get().runtime.choices.sampler, chosen
    replaced = {k: v for k, v in chosen.items() if v is not None}
    parts = ("predictor", "corrector")
    replaced |= {part: None for part in parts if HydraConfig.get().runtime.choices.get(f"sampler/{part}") == "none"}
    return trained["choices"]["sampler"], {**trained["model"]["sampler"], **replaced}


def choose_likelihood(config: DictConfig, model: Model) -> dict[str, Any]:
    """Return the likelihoods chosen, or the checkpoint's."""
    if HydraConfig.get().runtime.choices.likelihood == "trained":
        return {} if model.control is not None else model.likelihood
    chosen = instantiate(plain(config)["likelihood"] or {}, "likelihood")
    if chosen and model.denoiser.process.levels == 1:
        raise ConfigError("model=score has a single noise level and therefore no likelihood: choose likelihood=none")
    if "bound" in chosen and model.denoiser.process.levels is None:
        raise ConfigError("likelihood=bound needs a model with discrete levels: choose likelihood=flow or none")
    refuse_guided(model, chosen)
    return chosen


def refuse_guided(model: Model, likelihoods: Mapping[str, Any]) -> None:
    """Refuse a likelihood together with guidance.

    Raises:
        ConfigError: with the key that allows it.
    """
    if model.control is not None and likelihoods:
        raise ConfigError("a controlled model has no likelihood: set likelihood=none, or leave out control")
    for name, likelihood in likelihoods.items():
        if getattr(model.guidance, "scale", 1) != 1 and not likelihood.guided_field:
            raise ConfigError(
                f"likelihood={name} with guidance: the density of a guided field is not the likelihood of the model; "
                f"leave out guidance, or compute that density anyway with likelihood.{name}.guided_field=true"
            )


def choose_guidance(chosen: dict[str, Any] | None, trained: dict[str, Any]) -> Guidance | None:
    """Return the guidance that the command chooses, or the checkpoint's with the given keys replaced.

    Raises:
        ConfigError: for keys without a guidance.
    """
    given = {k: v for k, v in (chosen or {}).items() if v is not None}
    if HydraConfig.get().runtime.choices.guidance == "trained":
        of_checkpoint = trained.get("guidance") or {}
        if given and not of_checkpoint:
            key, value = next(iter(given.items()))
            raise ConfigError(
                f"guidance.{key}={value} needs a guidance: choose guidance=classifier_free, classifier or autoguidance"
            )
        given = {**of_checkpoint, **given}
    return instantiate(given, "guidance") or None
