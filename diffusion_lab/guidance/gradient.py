"""Guidance by a gradient that is added to the score."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Estimate, Preconditioning


@dataclass(frozen=True)
class GradientPreconditioning(Preconditioning):
    """The preconditioning of the denoiser that is guided, and alpha and sigma at its time t."""

    unshifted: Preconditioning
    t: float
    alpha: float
    sigma: float


class ShiftedScore(Denoiser):
    """A denoiser whose score has a gradient added: score(x, t) + gradient(x, t), for each image on its own.

    By Tweedie's formula x_0 is shifted by sigma^2 / alpha gradient and eps by -sigma gradient, so that every sampler
    and the probability flow use it like any other denoiser.

    Args:
        denoiser: the denoiser that is guided, bound to its condition.
    """

    guided = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.network, denoiser.process, denoiser.parameterization)
        self.unshifted, self.control, self.calls = denoiser, denoiser.control, denoiser.calls
        self.classes, self.null, self.condition = denoiser.classes, denoiser.null, denoiser.condition
        self.mean_gradient = denoiser.mean_gradient

    @abstractmethod
    def evaluate(self, x: Tensor, c: GradientPreconditioning) -> tuple[Tensor, Tensor | None, Tensor]:
        """The network's outputs at x, as `Denoiser.outputs` has them, and the gradient, of the shape of x."""

    def given(self, **condition: Tensor) -> Denoiser:
        """Raise ValueError: a condition must be bound before guidance."""
        raise ValueError("this denoiser is guided: bind the condition first, then apply guidance or control")

    def preconditionings(self, times: Tensor, like: Tensor) -> list[GradientPreconditioning]:
        """Those of the denoiser, with alpha and sigma, at each of `times` (S,) for x like `like` (B, ...)."""
        scales = torch.stack((times.double(), *self.process.alpha_sigma(times.double())), 1).tolist()
        each = self.unshifted.preconditionings(times, like)
        names = ("c_noise", "dtype", "c_in", "c_shift", "c_skip", "c_out")
        return [
            GradientPreconditioning(*(getattr(one, name) for name in names), one, *at)
            for one, at in zip(each, scales, strict=True)
        ]

    def outputs(self, x: Tensor, preconditioning: GradientPreconditioning) -> tuple[Tensor, Tensor | None]:
        """The network's output F + (sigma^2 / alpha) gradient / c_out, which shifts x_0 = c_skip x + c_out F."""
        c = preconditioning
        output, fraction, gradient = self.evaluate(x, c)
        return output + gradient * (c.sigma**2 / c.alpha / c.c_out), fraction

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Estimate:
        """The estimate at x (B, ...) and a scalar t, or t (B,) of equal times."""
        if condition:
            self.given(**condition)
        first, *others = t.reshape(-1).unique()
        if others:
            raise ValueError("a guided estimate is made at one time for the whole batch")
        (c,) = self.preconditionings(first.reshape(1), x)
        output, fraction = self.outputs(x, c)
        alpha, sigma = self.process.marginal(t, x)
        return Estimate(x, alpha, sigma, self.parameterization.eps(output, x, alpha, sigma), fraction)
