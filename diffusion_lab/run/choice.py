"""Choose the sampler and the likelihoods of a sampling command: those it names, or the checkpoint's."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from diffusion_lab.config.compose import plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.model import Model
from diffusion_lab.run.conditioning import refuse_guided


def choose_sampler(config: DictConfig, trained: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, settings) of the sampler: the one named, or the checkpoint's with the given keys replaced."""
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
    """The likelihoods named, or the checkpoint's."""
    if HydraConfig.get().runtime.choices.likelihood == "trained":
        return model.likelihood
    chosen = instantiate(plain(config)["likelihood"] or {}, "likelihood")
    if chosen and model.denoiser.process.levels == 1:
        raise ConfigError("model=score has a single noise level and therefore no likelihood: choose likelihood=none")
    if "bound" in chosen and model.denoiser.process.levels is None:
        raise ConfigError("likelihood=bound needs a model with discrete levels: choose likelihood=flow or none")
    refuse_guided(model, chosen)
    return chosen
