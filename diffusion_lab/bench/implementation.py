"""Ways to sample in a number of network evaluations: our samplers, and schedulers of diffusers."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.bench.schedulers import PEERS, Scheduler
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.model import Model
from diffusion_lab.run.compare import sampler_settings

OURS = (
    "ancestral", "ancestral spacing=quadratic", "reverse_diffusion", "euler_maruyama", "ddim", "ddim spacing=quadratic",
    "euler", "heun", "dpm_solver", "dpm_solver predictor.order=3", "unipc", "dpm_solver_sde",
    "dpm_solver_sde spacing=quadratic",
)  # fmt: skip
"""Samplers as on the command line; after the name follow overrides of its keys."""


@dataclass(frozen=True)
class Implementation:
    """A way to sample: what makes it for a number of steps, and the settings that decide what it draws."""

    name: str
    make: Callable[[int], Callable[..., Tensor]]
    settings: Mapping[str, Any]


def ours(arguments: str, variance: str | None) -> Implementation:
    """A sampler of conf/sampler.

    Raises:
        ConfigError: for an unknown sampler, or an adaptive one.
    """
    name, *keys = arguments.split()
    settings = sampler_settings(name, variance, keys)
    if "steps" not in settings:
        raise ConfigError(f"{name} is adaptive: its number of network evaluations cannot be set")
    return Implementation(arguments, lambda steps: instantiate({**settings, "steps": steps}, "sampler"), settings)


def theirs(name: str) -> Implementation:
    """A scheduler of diffusers.

    Raises:
        ImportError: without diffusers.
    """
    import diffusers

    scheduler, options = PEERS[name]
    settings = {"program": f"diffusers {diffusers.__version__}", "scheduler": scheduler, **options}
    return Implementation(f"diffusers {name}", lambda steps: Scheduler(scheduler, steps, **options), settings)


def steps_for(implementation: Implementation, nfe: int, model: Model) -> int | None:
    """Return the largest number of steps with at most `nfe` network evaluations, counted in dry runs.

    None if the sampler does not support so few steps.
    """
    dry_run = Denoiser(lambda x, c_noise: torch.zeros_like(x), model.denoiser.process, model.denoiser.parameterization)

    def calls(steps: int) -> float:
        dry_run.nfe = 0
        try:
            implementation.make(steps)(dry_run, (1, *model.shape), None, "cpu")
        except ValueError:  # more steps than timesteps, or too few
            return math.inf if steps > 2 else 0
        return dry_run.nfe

    steps = max(bisect(range(1, nfe + 1), nfe, key=calls), 1)
    return steps if max(nfe - 1, 1) <= calls(steps) <= nfe else None  # Heun's calls are odd
