"""The exact log-likelihood of the probability-flow ODE, by the instantaneous change of variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.flow import Probe, check_process, check_tolerances, directions, solve
from diffusion_lab.likelihood.guided import check_guidance
from diffusion_lab.noise import Generators, draw


@dataclass(frozen=True)
class Flow:
    """Terms of -log p(x_0) = prior + volume + bins, each (B,), in nats; and the evaluations of the network."""

    prior: Tensor
    log_det: Tensor
    dequantization: Tensor
    nfe: int

    @property
    def terms(self) -> dict[str, Tensor]:
        """The three terms by name."""
        return {"prior": self.prior, "volume": self.log_det, "bins": self.dequantization}

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x_0), (B,), in nats: of grey levels for images, of the density for points."""
        return -(self.prior + self.log_det + self.dequantization)


class FlowLikelihood:
    """Song et al. 2021, Eq. 39: log p_0(x(0)) = log p_1(x(1)) + integral of div v(x(t), t) dt, x' = v(x, t).

        prior    -log N(x(1); 0, prior_std^2 I)
        volume   -integral of div v dt from t_min to 1
        bins     -D log((high - low) / grey_levels): the density of the dequantized image, times the volume of its bin,
                 bounds the probability of its grey levels from below in expectation; 0 for points

    An image of grey levels k = 0..L-1 is dequantized to low + (high - low) (k + u) / L with u uniform.  In bits/dim
    `bins` is the offset of the published programs: log2 L - log2(high - low), at 256 levels 7 on [-1, 1] and 8 on
    [0, 1].

    Args:
        rtol, atol: tolerances of the solver, met by each image.
        t_min: where the data are placed, since the score may diverge at t = 0; None takes the earliest time of
            training, 1e-5 for the published SDEs.
        probe: of the divergence; "exact" costs a backward pass for each dimension.
        probes: random vectors for each image, drawn once; the standard error of the estimate falls as 1/sqrt(probes).
        precision: dtype of the state (float64 in the published programs, which changes less than 1e-5 bits/dim); the
            network runs in its own.
        guided_field: take a guided denoiser, too, whose density is not the model's.

    Raises:
        ValueError: if a number is out of its range; on a call, if the process has a single noise level.
        RuntimeError: on a call, if the solver cannot meet the tolerances.
    """

    name = "flow"
    TERMS = ("prior", "volume", "bins")

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        t_min: float | None = None,
        probe: Literal["rademacher", "gaussian", "exact"] = "rademacher",
        probes: int = 1,
        precision: Literal["float32", "float64"] = "float32",
        guided_field: bool = False,
    ) -> None:
        check_tolerances(rtol, atol)
        if t_min is not None and not 0 < t_min < 1:
            raise ValueError(f"t_min must be between 0 and 1, got {t_min}")
        if probes < 1 or (probe == "exact" and probes != 1):
            raise ValueError(f"probes must be at least 1, and 1 with probe=exact, got {probes} with probe={probe}")
        self.rtol, self.atol, self.t_min, self.guided_field = rtol, atol, t_min, guided_field
        self.probe: Probe = probe
        self.probes = probes
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    @torch.inference_mode(False)  # its tensors cannot be differentiated
    def __call__(self, denoiser: Denoiser, x0: Tensor, grey_levels: int | None, generator: Generators = None) -> Flow:
        """The log-likelihood at x0 (B, ...) in the model's range, images having `grey_levels` values (None: points).

        With a generator for each image, image i is dequantized and probed by generator i alone.
        """
        check_process(denoiser.process)
        check_guidance(denoiser, self.guided_field)
        calls, dimensions = denoiser.nfe, x0[0].numel()
        x0 = x0.to(self.dtype)
        dequantization = x0.new_zeros(len(x0))
        if grey_levels is not None:
            row = denoiser.parameterization
            x0 = dequantize(x0, row.low, row.high, grey_levels, generator)
            dequantization -= dimensions * math.log((row.high - row.low) / grey_levels)
        prior, log_det = self.density(denoiser, x0, directions(x0, self.probe, self.probes, generator))
        return Flow(prior, log_det, dequantization, denoiser.nfe - calls)

    def protocol(self) -> dict[str, Any]:
        """What decides the value beside model and data."""
        names = ("rtol", "atol", "t_min", "probe", "probes")
        return {"method": "flow", **{name: getattr(self, name) for name in names}, "precision": str(self.dtype)}

    def density(self, denoiser: Denoiser, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(prior, volume) of the density at x (B, ...), by `directions`; each (B,)."""
        t_min, std = denoiser.process.t_train_min if self.t_min is None else self.t_min, denoiser.process.prior_std
        ((z, change),) = solve(denoiser, x, (t_min, 1.0), self.rtol, self.atol, vectors=vectors)
        prior = 0.5 * (z / std).square().flatten(1).sum(1) + x[0].numel() * math.log(std * math.sqrt(2 * math.pi))
        return prior, -change


def dequantize(x: Tensor, low: float, high: float, grey_levels: int, generator: Generators = None) -> Tensor:
    """The level k of each pixel, one of L = `grey_levels` even ones from low to high, spread over its bin.

        low + (high - low) (k + u) / L,   u ~ U[0, 1];   of the shape of x

    Theis, van den Oord & Bethge 2016, Section 3.1.
    """
    level = (x - low) / (high - low) * (grey_levels - 1)
    # In float64 whatever x is in: the precision of a computation does not change what is drawn.
    u = torch.special.ndtr(draw(x.shape, generator, torch.float64)).to(x)
    return low + (high - low) * (level + u) / grey_levels
