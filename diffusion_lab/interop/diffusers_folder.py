"""A folder that diffusers' `DiffusionPipeline.from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.interop import diffusers, diffusers_adm, diffusers_ncsnpp
from diffusion_lab.interop.diffusers_scheduler import SCORE, Pipeline, pipeline_of
from diffusion_lab.network import ADMUNet, NCSNpp, UNet

VERSION = "0.42.1"
"""Version of diffusers with which the tests read such folders."""

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

NETWORKS: dict[type, tuple[Callable[..., dict[str, Tensor]], Callable[..., dict[str, Any]]]] = {
    UNet: (diffusers.to_unet2d, diffusers.unet2d_config),
    ADMUNet: (diffusers_adm.to_unet2d, diffusers_adm.unet2d_config),
    NCSNpp: (diffusers_ncsnpp.to_unet2d, diffusers_ncsnpp.unet2d_config),
}
"""Our networks that UNet2DModel can be -> their weights under its names, and its configuration."""


def folder(denoiser: Denoiser, sampler: Any, shape: Sequence[int]) -> tuple[dict[str, Any], Pipeline]:
    """(contents of each file of the folder: tables for JSON, and weights by name; the pipeline in it).

    Args:
        sampler: the sampler whose images the pipeline makes from the same noise.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: if diffusers has no such network or scheduler.
    """
    network: nn.Module = denoiser.network
    if len(shape) != 3 or not denoiser.parameterization.bounded:
        raise ValueError("no pipeline for data that are not images")
    if type(network) not in NETWORKS:
        known = ", ".join(one.__name__ for one in NETWORKS)
        raise ValueError(f"no network like our {type(network).__name__}, only like {known}")
    pipeline = pipeline_of(denoiser, sampler)
    if (pipeline.name == SCORE) != (type(network) is NCSNpp):
        raise ValueError(f"no {pipeline.name} with our {type(network).__name__}: NCSN++ goes with the process sde=ve")
    to_unet2d, unet2d_config = NETWORKS[type(network)]
    weights, config = to_unet2d(network), unet2d_config(network, shape[1:])
    if denoiser.parameterization.learned_range and "variance_type" not in pipeline.settings:
        weights, config, pipeline = without_variance(weights, config, pipeline)
    versioned = {"_diffusers_version": VERSION}
    index = {"scheduler": ["diffusers", pipeline.scheduler], "unet": ["diffusers", "UNet2DModel"]}
    return {
        "model_index.json": {"_class_name": pipeline.name, **versioned, **index},
        "scheduler/scheduler_config.json": {"_class_name": pipeline.scheduler, **versioned, **pipeline.settings},
        "unet/config.json": {**config, **versioned},
        WEIGHTS: weights,
    }, pipeline


def without_variance(
    weights: dict[str, Tensor], config: dict[str, Any], pipeline: Pipeline
) -> tuple[dict[str, Tensor], dict[str, Any], Pipeline]:
    """Weights, configuration and pipeline without the half of the output that only ancestral steps use."""
    channels = config["out_channels"] // 2
    kept = {name: weights[name][:channels] for name in ("conv_out.weight", "conv_out.bias")}
    differs = f"{pipeline.differs}  The network's learned variance, which these steps do not use, is left out."
    return {**weights, **kept}, {**config, "out_channels": channels}, pipeline._replace(differs=differs.strip())
