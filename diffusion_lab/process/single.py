"""A single noise level: score matching without annealing."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.process.base import EvenSpacing, NoiseProcess, Variance
from diffusion_lab.ranges import Positive, checked


class SingleLevel(NoiseProcess):
    """x = x_0 + sigma eps with one sigma (Vincent 2011); the noise level is at t = 1, clean data at t = 0.

    In continuous time it is Brownian motion, sigma(t)^2 = sigma^2 t.

    Args:
        prior_std: standard deviation of the Gaussian that sampling starts from, a heuristic: about that of the data.
    """

    levels, t_min, keeps_signal = 1, 1.0, True

    @checked
    def __init__(self, sigma: Positive = 0.1, prior_std: Positive = 1.0) -> None:
        super().__init__()
        self.level_sigma, self.prior_std = float(sigma), float(prior_std)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.level_sigma * t.sqrt()

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.level_sigma)

    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        return torch.ones(batch, device=device, dtype=torch.float32)

    def importance_times(
        self, batch: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(1, 1): there is only one time."""
        one = self.sample_times(batch, device)
        return one, one

    def even_timesteps(self, steps: int | None, spacing: EvenSpacing, start: float, end: float) -> Tensor:
        if steps not in (None, 1):
            raise ValueError(f"a single noise level has one sampler step, got {steps}")
        return torch.ones(1, dtype=torch.float64)

    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        raise ValueError("a single noise level has no variational bound: set loss.vlb_weight=0")
