"""The variational bound on log p(x_0) of a discrete model, and its terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood.guided import check_guidance
from diffusion_lab.likelihood.terms import decoder_nll, step_kl
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import DiscreteProcess, Variance
from diffusion_lab.ranges import Count, checked


@dataclass(frozen=True)
class Bound:
    """Terms of -log p(x_0) <= prior + steps + decoder = L_T + L_1...T-1 + L_0, each (B,), in nats."""

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

        prior    L_T = KL(q(x_T | x_0) || N(0, prior_std^2 I))
        steps    L_1 + ... + L_{T-1}, the sum over t = 2..T of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        decoder  L_0 = -log p(x_0 | x_1): the Gaussian probability of the bin of the grey level (Eq. 13), where the
                 outermost bins extend to infinity; for points the density of that Gaussian

    Each term is a one-sample estimate of its expectation over x_t.

    Args:
        variance: variance of the reverse steps; "learned_range" needs a network that predicts it.
        clip: clip the estimate of x_0 to the image range, as in the evaluation of Ho et al.
        terms: number of the T - 1 steps that are evaluated per image, evenly spaced with random offsets and rescaled to
            an unbiased estimate of the sum; None evaluates all.
        guided_field: accept a guided denoiser, whose bound is not the model's.

    Raises:
        ValueError: on a call, if the process has no discrete levels.
    """

    name = "bound"
    TERMS = ("prior", "steps", "decoder")
    REFUSES: ClassVar = {
        "model.SINGLE_LEVEL": "needs several noise levels, and this model has only one: choose likelihood=none",
        "model.process.CONTINUOUS": "needs a model with discrete levels: choose likelihood=flow or none",
    }

    @checked
    def __init__(
        self,
        variance: Variance = "fixed_large",
        clip: bool = True,
        terms: Count | None = None,
        guided_field: bool = False,
    ) -> None:
        self.variance, self.clip, self.terms, self.guided_field = variance, clip, terms, guided_field

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x0: Tensor, grey_levels: int | None, generator: Generators = None) -> Bound:
        """The bound at x0 (B, ...) in the model's range; `grey_levels` is the number of pixel values (None: points)."""
        process = denoiser.process
        check_guidance(denoiser, self.guided_field, self.name)
        if not isinstance(process, DiscreteProcess):
            raise ValueError("the variational bound needs a model with discrete noise levels")
        x0 = x0.double()
        return Bound(
            self.prior(process, x0),
            self.steps(denoiser, process, x0, generator),
            self.decoder(denoiser, process, x0, grey_levels, generator),
        )

    def protocol(self) -> dict[str, Any]:
        """The settings that determine the value, besides model and data."""
        return {"method": "bound", "variance": self.variance, "clip": self.clip, "terms": self.terms}

    def prior(self, process: DiscreteProcess, x0: Tensor) -> Tensor:
        """L_T, computed exactly."""
        end = torch.ones((), dtype=torch.float64)
        variance = (process.sigma(end) / process.prior_std) ** 2
        mean = process.alpha(end) * x0 / process.prior_std
        return 0.5 * (mean**2 + variance - 1 - variance.log()).flatten(1).sum(1)

    def steps(self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, generator: Generators) -> Tensor:
        """The sum over t = 2..T of L_{t-1}, estimated from `terms` of them."""
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
        """L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s = t - 1/T, for t of shape (B,)."""
        mean, fraction = self.predict(denoiser, process, x0, t, eps)
        return step_kl(process, t, x0, mean, self.variance, fraction)

    def decoder(
        self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, grey_levels: int | None, generator: Generators
    ) -> Tensor:
        """L_0."""
        t = torch.full((len(x0),), 1 / process.levels, dtype=torch.float64, device=x0.device)
        eps = draw(x0.shape, generator, x0.dtype, x0.device)
        mean, fraction = self.predict(denoiser, process, x0, t, eps)
        row = denoiser.parameterization
        return decoder_nll(process, x0, mean, self.variance, fraction, (row.low, row.high), grey_levels)

    def predict(
        self, denoiser: Denoiser, process: DiscreteProcess, x0: Tensor, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The estimate of x_0 at x_t = alpha x_0 + sigma eps, and the fraction of a learned range of variances."""
        estimate, bounds = denoiser(process.perturb(x0, t, eps), t), denoiser.parameterization.range_of(x0.shape)
        return estimate.x0.clamp(*bounds) if self.clip and bounds else estimate.x0, estimate.fraction
