"""Schedulers of diffusers with the interface of our samplers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.bench.benchmark import Unavailable
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, draw

LOG_SNR = {"use_lu_lambdas": True}
PEERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DDPM": ("DDPMScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++, log-SNR": ("DPMSolverMultistepScheduler", LOG_SNR),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, log-SNR": ("UniPCMultistepScheduler", {"use_exponential_sigmas": True, "solver_order": 3}),
    "SDE-DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "SDE-DPM-Solver++, log-SNR": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **LOG_SNR}),
}
"""Schedulers of diffusers, with options other than the defaults."""


class Scheduler:
    """A scheduler of diffusers with the interface of our samplers: the same noise and network, its own steps.

    Raises:
        Unavailable: on a call, for a process that is not a discrete process with betas.
    """

    def __init__(self, name: str, steps: int, **options: Any) -> None:
        import diffusers

        self.make = partial(getattr(diffusers, name), prediction_type="epsilon", **options)
        self.steps = steps

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, shape: Sequence[int], generator: Generators, device: torch.device | str
    ) -> Tensor:
        """Samples of `shape` (B, ...) in the model's range."""
        levels = denoiser.process.levels
        if levels is None or denoiser.process.keeps_signal:
            raise Unavailable("diffusers' schedulers need the betas of a discrete model")
        times = torch.arange(levels + 1, dtype=torch.float64) / levels
        kept = denoiser.process.alpha(times[1:]) ** 2
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        scheduler = self.make(num_train_timesteps=levels, trained_betas=betas.numpy())
        scheduler.set_timesteps(self.steps)
        draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        x = draw(shape, generator, torch.float32, device) * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, step)
            x = scheduler.step(denoiser(seen, times[int(step) + 1]).eps, step, x, **draws).prev_sample
        return x
