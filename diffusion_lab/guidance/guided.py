"""Guidance by extrapolation from a weaker denoiser's estimate to a stronger one's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Estimate, Preconditioning
from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import NonNegative, checked

NoiseInterval = tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]]
"""(low, high) of sigma / alpha."""


@dataclass(frozen=True)
class GuidedPreconditioning(Preconditioning):
    """The stronger denoiser's preconditioning, together with the weaker one's and the guidance scale at this time."""

    weak: Preconditioning
    guidance_scale: float


class Guided(Denoiser):
    """weak + scale (strong - weak), for the outputs of two denoisers with the same process and parameterization.

    The weights scale and 1 - scale sum to 1, so eps, x_0 and the score are combined in the same way, and the result is
    a denoiser with the same parameterization, which samplers and the probability flow use like any other.  Both
    networks are evaluated and counted in the NFE, but only one where the scale is 1 or 0.

    Args:
        strong, weak: the denoisers, bound to their conditions; evaluations of both are counted in `strong`.
        scale: guidance scale; 1 is `strong` itself.
        interval: (low, high) of sigma / alpha in which guidance is on; elsewhere the scale is 1 (Kynkäänniemi et al.
            2024).  None: everywhere.

    Raises:
        ValueError: for an invalid scale or interval (`check_order`).
    """

    guided = True

    @checked
    def __init__(
        self, strong: Denoiser, weak: Denoiser, scale: NonNegative, interval: NoiseInterval | None = None
    ) -> None:
        super().__init__(strong.network, strong.process, strong.parameterization)
        check_order(interval)
        self.strong, self.weak, self.scale, self.interval = strong, weak.given(**weak.condition), scale, interval
        self.classes, self.null, self.condition = strong.classes, strong.null, strong.condition
        self.calls = self.weak.calls = strong.calls

    def given(self, **condition: Tensor) -> Denoiser:
        """Raise ValueError: a condition must be bound before guidance, as it may apply to `strong` only."""
        raise ValueError("this denoiser is guided: bind the condition first, then apply guidance")

    def with_network(self, network: Callable[..., Tensor]) -> Denoiser:
        """Return a guided denoiser with another network in place of both."""
        pair = self.strong.with_network(network), self.weak.with_network(network)
        return Guided(*pair, self.scale, self.interval)

    def scales(self, times: Tensor) -> Tensor:
        """The guidance scale at `times`, of the shape of `times`, float64."""
        t = times.double()
        scale = torch.full_like(t, self.scale)
        return torch.where(inside(self.interval, self.process, t), scale, 1.0)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Estimate:
        """The estimate at x (B, ...) and t, (B,) or scalar."""
        if condition:
            self.given(**condition)
        scale = self.scales(t).to(x)
        if (scale == 1).all():
            return self.strong(x, t)
        weak = self.weak(x, t)
        if (scale == 0).all():
            return weak
        strong, scale = self.strong(x, t), scale.reshape(scale.shape + (1,) * (x.dim() - 1 if scale.dim() else 0))
        eps = weak.eps + scale * (strong.eps - weak.eps)
        return Estimate(x, weak.alpha, weak.sigma, eps, strong.fraction)

    def preconditionings(self, times: Tensor, like: Tensor) -> list[GuidedPreconditioning]:
        """The preconditionings of both denoisers at each of `times` (S,), for x like `like` (B, ...)."""
        each = zip(
            self.strong.preconditionings(times, like),
            self.weak.preconditionings(times, like),
            self.scales(times).tolist(),
            strict=True,
        )
        return [GuidedPreconditioning(**vars(strong), weak=weak, guidance_scale=scale) for strong, weak, scale in each]

    def outputs(self, x: Tensor, preconditioning: GuidedPreconditioning) -> tuple[Tensor, Tensor | None]:
        """The combined network output at x (B, ...); a learned range of variances is that of `strong`."""
        scale = preconditioning.guidance_scale
        if scale == 0:
            return self.weak.outputs(x, preconditioning.weak)
        output, fraction = self.strong.outputs(x, preconditioning)
        if scale == 1:
            return output, fraction
        # Scaled before the next call, which may overwrite this output.
        return (output * scale).add_(self.weak.network_output(x, preconditioning.weak), alpha=1 - scale), fraction


class Guidance(ABC):
    """Combines a denoiser with a weaker one; scale and interval as in `Guided`.

    Raises:
        ValueError: for an invalid scale or interval.
    """

    name: str

    @checked
    def __init__(self, scale: NonNegative, interval: NoiseInterval | None) -> None:
        check_order(interval)
        self.scale, self.interval = scale, interval

    @abstractmethod
    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """Return the guided denoiser of a denoiser that is bound to its condition.

        Raises:
            ValueError: if this guidance does not suit the denoiser.
        """

    @property
    def where(self) -> str:
        """The interval in words."""
        return "" if self.interval is None else " where {} <= sigma/alpha <= {}".format(*self.interval)

    def __str__(self) -> str:
        return f"{self.name}, scale {self.scale:g}{self.where}; calls of both networks are counted"


def check_order(interval: Sequence[float] | None) -> None:
    """Raise ValueError unless the interval is increasing."""
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"guidance.interval={interval} must be [low, high] of sigma/alpha, low < high")


def inside(interval: Sequence[float] | None, process: NoiseProcess, times: Tensor) -> Tensor:
    """Whether guidance is on at each of `times`: where sigma / alpha is in the interval; everywhere for None."""
    alpha, sigma = process.alpha_sigma(times.double())
    low, high = interval or (0.0, math.inf)
    return (sigma / alpha >= low) & (sigma / alpha <= high)


def same_noise(one: Denoiser, other: Denoiser) -> bool:
    """Whether two denoisers have the same levels, and the same alpha and sigma at every time."""
    t = torch.linspace(max(one.process.t_min, other.process.t_min), 1, 50, dtype=torch.float64)
    noises = [torch.stack(d.process.alpha_sigma(t)) for d in (one, other)]
    return one.process.levels == other.process.levels and torch.allclose(*noises, rtol=1e-6)
