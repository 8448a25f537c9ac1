"""Denoising score matching: every paper's loss is a weighting w(t) of one residual, |eps_hat - eps|^2."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.coupling import Coupling, optimal_transport
from diffusion_lab.loss.time_law import TimeLaw
from diffusion_lab.noise import Generators
from diffusion_lab.process import Variance
from diffusion_lab.ranges import NonNegative, Positive, checked

Weighting = Literal["simple", "x0", "v", "min_snr", "likelihood", "output", "velocity"]
Reduction = Literal["mean", "half_sum"]


def _snr(denoiser: Denoiser, t: Tensor) -> Tensor:
    alpha, sigma = denoiser.process.alpha_sigma(t)
    return (alpha / sigma) ** 2


def _simple(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    return torch.ones_like(t)


def _x0(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    return 1 / _snr(denoiser, t)


def _v(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    alpha, sigma = denoiser.process.alpha_sigma(t)
    return (alpha + sigma**2 / alpha) ** 2


def _min_snr(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    return (gamma / _snr(denoiser, t)).clamp(max=1)


def _likelihood(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    return (denoiser.process.g(t) / denoiser.process.sigma(t)) ** 2


def _velocity(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    return (denoiser.process.g(t) ** 2 / (2 * denoiser.process.sigma(t))) ** 2


def _output(denoiser: Denoiser, t: Tensor, gamma: float) -> Tensor:
    alpha, sigma = denoiser.process.alpha_sigma(t)
    return denoiser.parameterization.eps(torch.ones_like(t), torch.zeros_like(t), alpha, sigma) ** -2


# Module-level functions, so that a loss can be pickled with its model.
WEIGHTS: dict[str, Callable[[Denoiser, Tensor, float], Tensor]] = {
    "simple": _simple,
    "x0": _x0,
    "v": _v,
    "min_snr": _min_snr,
    "likelihood": _likelihood,
    "output": _output,
    "velocity": _velocity,
}


class DenoisingLoss(OneTimeLoss):
    """w(t) |eps_hat - eps|^2 per image, with t sampled by a time law and eps ~ N(0, I).

        w(t) = simple_weight * weighting(t) + vlb_weight * process.vlb_weight(t)

    `weighting` as a factor of the eps residual: "simple" = 1 (Ho et al. 2020, Eq. 14); "x0" = 1/SNR and "v", which
    give a uniformly weighted residual of x_0 or v; "min_snr" = min(SNR, gamma)/SNR (Hang et al. 2023, Section 3.4);
    "likelihood" = g^2/sigma^2 (Song et al. 2021b, Section 3); "output" gives a uniformly weighted residual of whatever
    the network predicts: EDM's loss, and that of flow matching for the output u; "velocity" = (g^2/(2 sigma))^2 gives
    that of the velocity alpha' x_0 + sigma' eps of any schedule (Lipman et al. 2023, Eq. 9).  With the variational
    weight and reduction="mean" the expected loss is the sum of the diffusion terms of the bound in nats per dimension
    (Ho et al. 2020, Eq. 12).

    Args:
        time_law: law of the training times; None: uniform.  `Importance` gives the same expectation, and a lower
            variance with likelihood weighting (Song et al. 2021b, Section 4.2).
        reduction: "mean" over the dimensions (DDPM), or "half_sum", half the sum (NCSN, ScoreSDE VE).
        coupling: noise drawn independently of the data, or paired with the data of a training batch by
            `coupling.optimal_transport`, on each rank alone.  Held-out losses are those of independent noise.  The
            probability flow of a coupled model leads from noise to data, and has a likelihood; but its estimate of eps
            is not the score of p_t, so that samplers which add noise do not sample the data.

    Raises:
        ValueError: for unknown options, negative weights, weights that are both 0, or gamma <= 0.
    """

    PAIRED: ClassVar = True
    """Whether noise paired with the data, as of data.pairs, makes sense."""

    @checked
    def __init__(
        self,
        weighting: Weighting = "simple",
        simple_weight: NonNegative = 1.0,
        vlb_weight: NonNegative = 0.0,
        gamma: Positive = 5.0,
        variance: Variance = "fixed_large",
        time_law: TimeLaw | None = None,
        reduction: Reduction = "mean",
        coupling: Coupling = "independent",
    ) -> None:
        super().__init__(time_law)
        if simple_weight + vlb_weight == 0:
            raise ValueError("simple_weight and vlb_weight must not both be 0")
        self.weighting, self.simple_weight, self.vlb_weight = WEIGHTS[weighting], simple_weight, vlb_weight
        self.gamma, self.variance, self.reduction, self.coupling = gamma, variance, reduction, coupling

    def weight(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """w(t), float32, of the shape of t."""
        weight = self.simple_weight * self.weighting(denoiser, t.double(), self.gamma)
        if self.vlb_weight:
            weight = weight + self.vlb_weight * denoiser.process.vlb_weight(t, self.variance)
        return weight.to(t.dtype)

    def draws(
        self, denoiser: Denoiser, x0: Tensor, generator: Generators, noise: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The noise eps (B, ...), paired with x0 while training."""
        (eps,) = super().draws(denoiser, x0, generator, noise)
        if self.coupling == "optimal_transport" and noise is None and generator is None:
            eps = optimal_transport(x0, eps, denoiser.condition.get("label"))
        return (eps,)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,) and noise eps (B, ...)."""
        estimate = denoiser(denoiser.process.perturb(x0, t, eps), t)
        squared = (estimate.eps - eps).square().flatten(1)
        reduced = {"mean": squared.mean, "half_sum": lambda dim: 0.5 * squared.sum(dim)}[self.reduction](1)
        return self.weight(denoiser, t).to(reduced.dtype) * reduced
