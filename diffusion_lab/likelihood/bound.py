"""The variational bound on log p(x_0) of a discrete model, split in its terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood.guided import check_guidance
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import DiscreteProcess, Variance


@dataclass(frozen=True)
class Bound:
    """Terms of -log p(x_0) <= prior + steps + decoder, each (B,), in nats."""

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def terms(self) -> dict[str, Tensor]:
        """The three terms by name."""
        return {"prior": self.prior, "steps": self.steps, "decoder": self.decoder}

    @property
    def log_likelihood(self) -> Tensor:
        """The lower bound on log p(x_0), (B,), in nats."""
        return -(self.prior + self.steps + self.decoder)


class VariationalBound:
    """Ho et al. 2020, Eq. 5: L_T + sum_{t > 1} L_{t-1} + L_0.

        prior    KL(q(x_T | x_0) || N(0, prior_std^2 I))
        steps    sum over t = 2..T of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        decoder  -log p(x_0 | x_1): the mass that a Gaussian gives to the grey level (Eq. 13), whose outermost levels
                 reach to infinity; for points in the plane the density of that Gaussian

    Each term is one draw of its expectation over x_t.

    Args:
        variance: of the reverse steps.
        clip: clip x0_hat to the image range, as Ho et al. do when they evaluate.
        terms: how many of the T - 1 steps to evaluate for each image, evenly spread with random offsets and scaled up
            without bias; None evaluates all.
        guided_field: take a guided denoiser, too, whose bound is not the model's.

    Raises:
        ValueError: on a call with a process that has no levels.
    """

    name = "bound"
    TERMS = ("prior", "steps", "decoder")

    def __init__(
        self,
        variance: Variance = "fixed_large",
        clip: bool = True,
        terms: int | None = None,
        guided_field: bool = False,
    ) -> None:
        if terms is not None and terms < 1:
            raise ValueError(f"terms must be at least 1 (or null for all steps), got {terms}")
        self.variance, self.clip, self.terms, self.guided_field = variance, clip, terms, guided_field

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x0: Tensor, grey_levels: int | None, generator: Generators = None) -> Bound:
        """The bound at x0 (B, ...) in the model's range, whose images have `grey_levels` values (None for points)."""
        process = denoiser.process
        check_guidance(denoiser, self.guided_field)
        if not isinstance(process, DiscreteProcess):
            raise ValueError("the variational bound needs a model with discrete levels")
        x0 = x0.double()
        return Bound(
            self.prior(process, x0),
            self.steps(denoiser, process, x0, generator),
            self.decoder(denoiser, process, x0, grey_levels, generator),
        )

    def protocol(self) -> dict[str, Any]:
        """What decides the value beside model and data."""
        return {"method": "bound", "variance": self.variance, "clip": self.clip, "terms": self.terms}

    def prior(self, process: DiscreteProcess, x0: Tensor) -> Tensor:
        """L_T, exact."""
        end = torch.ones((), dtype=torch.float64)
        variance = (process.sigma(end) / process.prior_std) ** 2
        mean = process.alpha(end) * x0 / process.prior_std
        return 0.5 * (mean**2 + variance - 1 - variance.log()).flatten(1).sum(1)

    def steps(self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, generator: Generators) -> Tensor:
        """The sum over t = 2..T of L_{t-1}, from `terms` of them."""
        steps = process.levels - 1
        terms = min(self.terms or steps, steps)
        offsets = torch.special.ndtr(draw((len(x0), terms), generator, torch.float64))
        levels = 2 + ((torch.arange(terms) + offsets) * steps / terms).long().clamp(max=steps - 1)
        total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        for level in levels.unbind(1):
            t = level.to(x0.device) / process.levels
            total += self.step(denoiser, process, x0, t.double(), draw(x0.shape, generator, x0.dtype, x0.device))
        return total * (steps / terms)

    def step(self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of neighbouring levels, t of shape (B,)."""
        s = t - 1 / process.levels
        _, b, true = process.posterior(s, t)
        model = process.reverse_variance(s, t, self.variance)
        error = (x0 - self.guess(denoiser, process, x0, t, eps)).square().flatten(1).sum(1)
        dimensions = x0[0].numel()
        return 0.5 * (dimensions * ((model / true).log() + true / model - 1) + b**2 * error / model)

    def decoder(
        self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, grey_levels: int | None, generator: Generators
    ) -> Tensor:
        """L_0."""
        t = torch.full((len(x0),), 1 / process.levels, dtype=torch.float64, device=x0.device)
        mean = self.guess(denoiser, process, x0, t, draw(x0.shape, generator, x0.dtype, x0.device))
        std = math.sqrt(process.decoder_variance)
        if grey_levels is None:
            nats = 0.5 * ((x0 - mean) / std) ** 2 + math.log(std * math.sqrt(2 * math.pi))
        else:
            row = denoiser.parameterization
            nats = -log_mass_of_level(x0, mean, std, row.low, row.high, grey_levels)
        return nats.flatten(1).sum(1)

    def guess(self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x0_hat from x_t = alpha x_0 + sigma eps."""
        guess, bounds = denoiser(process.perturb(x0, t, eps), t).x0, denoiser.parameterization.range_of(x0.shape)
        return guess.clamp(*bounds) if self.clip and bounds else guess


def log_mass_of_level(x: Tensor, mean: Tensor, std: float, low: float, high: float, grey_levels: int) -> Tensor:
    """log of the mass of N(mean, std^2) on the bin of x, one of `grey_levels` even levels from low to high.

    Ho et al. 2020, Eq. 13, for any number of levels, of the shape of x.  Exact in the far tails too, where the
    published code has a floor of log 1e-12.
    """
    half = (high - low) / (grey_levels - 1) / 2
    # By symmetry the bin is taken on the left of the mean, where log_ndtr keeps its precision.
    side = torch.where(x > mean, -1.0, 1.0)
    lower = torch.where(x < low + half, -math.inf, x - half - mean) / std
    upper = torch.where(x > high - half, math.inf, x + half - mean) / std
    left, right = torch.minimum(side * lower, side * upper), torch.maximum(side * lower, side * upper)
    log_left, log_right = torch.special.log_ndtr(left), torch.special.log_ndtr(right)
    return log_right + torch.log1p(-(log_left - log_right).exp())
