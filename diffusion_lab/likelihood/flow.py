"""The exact log-likelihood by the probability-flow ODE and the instantaneous change of variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.flow import Probe, check_process, probe_vectors, solve
from diffusion_lab.likelihood.guided import check_guidance
from diffusion_lab.noise import Generators, draw
from diffusion_lab.ranges import Count, Fraction, Positive, checked


@dataclass(frozen=True)
class Flow:
    """Terms of -log p(x_0) = prior + log_det + dequantization, each (B,), in nats; and the network evaluations."""

    prior: Tensor
    log_det: Tensor
    dequantization: Tensor
    nfe: int

    @property
    def terms(self) -> dict[str, Tensor]:
        """The three terms by their names in results.json (volume: log_det, bins: dequantization)."""
        return {"prior": self.prior, "volume": self.log_det, "bins": self.dequantization}

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x_0), (B,), in nats: log-probability of grey levels for images, log-density for points."""
        return -(self.prior + self.log_det + self.dequantization)


class FlowLikelihood:
    """Song et al. 2021, Eq. 39: log p_0(x(0)) = log p_1(x(1)) + integral of div v(x(t), t) dt, x' = v(x, t).

        prior           -log N(x(1); 0, prior_std^2 I)
        log_det         -integral of div v dt from t_min to 1, the log-determinant of x(0) -> x(1)
        dequantization  -D log((high - low) / grey_levels), for the volume of a bin of grey levels; 0 for points

    An image of grey levels k = 0..L-1 is dequantized to low + (high - low) (k + u) / L with u uniform.  In expectation
    its density times the volume of the bin is a lower bound on the probability of the grey levels.  In bits/dim the
    dequantization term is the offset of the official code: log2 L - log2(high - low), for 256 levels 7 on [-1, 1] and
    8 on [0, 1].

    With K `dequantizations` the result is log 1/K sum_k p(x + u_k) of K draws of u: a tighter bound (Lipman et al.
    2023, Appendix E), which is not comparable with that of a single draw, and has its own name.  prior and log_det are
    then the means over k, and dequantization also holds what the average inside the logarithm gains.  Errors of a
    random probe raise the result as well; probe=exact has none.

    Args:
        rtol, atol: tolerances of the solver for the estimated error of each step and image.  That of the
            log-determinant, in bits/dim, is at most the larger of the two.  The root mean square over the entries of
            z = x / sqrt(alpha^2 + sigma^2) of error / (atol + rtol |z|) is at most 1.  Errors of the steps add up, but
            the solver is more accurate than it estimates.  For rtol = atol the result is accurate to about that many
            bits/dim if the network is smooth in time, and to a few times that if it is rough (with sines of 999 t).
        t_min: time of the data, as the score may diverge at t = 0; None takes the smallest training time, 1e-5 for
            the published SDEs.
        probe: estimator of the divergence; "exact" costs a backward pass per dimension.
        probes: number of random vectors per image, drawn once; the standard error is proportional to 1/sqrt(probes).
        precision: dtype of the state (float64 in the official code, which changes less than 1e-5 bits/dim); the
            network runs in its own precision.
        guided_field: accept a guided denoiser, whose density is not the model's.
        dequantizations: K, the number of dequantizations inside the logarithm.

    Raises:
        ValueError: if a number is out of range; on a call, if the process has a single noise level, or for several
            dequantizations of data without grey levels.
        RuntimeError: on a call, if the solver cannot meet the tolerances.
    """

    name = "flow"
    TERMS = ("prior", "volume", "bins")
    REFUSES: ClassVar = {
        "model.SINGLE_LEVEL": "needs several noise levels, and this model has only one: choose likelihood=none"
    }

    @checked
    def __init__(
        self,
        rtol: Positive = 1e-5,
        atol: Positive = 1e-5,
        t_min: Fraction | None = None,
        probe: Literal["rademacher", "gaussian", "exact"] = "rademacher",
        probes: Count = 1,
        precision: Literal["float32", "float64"] = "float32",
        guided_field: bool = False,
        dequantizations: Count = 1,
    ) -> None:
        if probe == "exact" and probes != 1:
            raise ValueError(f"probes must be 1 with probe=exact, got {probes}")
        self.rtol, self.atol, self.t_min, self.guided_field = rtol, atol, t_min, guided_field
        self.probe: Probe = probe
        self.probes, self.dequantizations = probes, dequantizations
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    @torch.inference_mode(False)  # autograd cannot use tensors created in inference mode
    def __call__(self, denoiser: Denoiser, x0: Tensor, grey_levels: int | None, generator: Generators = None) -> Flow:
        """The log-likelihood at x0 (B, ...) in the model's range; `grey_levels` as in `dequantize` (None: points).

        With one generator per image, dequantization and random vectors of image i depend on generator i alone.
        """
        check_process(denoiser.process)
        check_guidance(denoiser, self.guided_field, self.name)
        calls, dimensions = denoiser.nfe, x0[0].numel()
        row, count, x0 = denoiser.parameterization, self.dequantizations, x0.to(self.dtype)
        if grey_levels is None:
            if count > 1:
                raise ValueError(f"likelihood.flow.dequantizations={count} is for images with grey levels: set it to 1")
            prior, log_det = self.density(denoiser, x0, probe_vectors(x0, self.probe, self.probes, generator))
            return Flow(prior, log_det, x0.new_zeros(len(x0)), denoiser.nfe - calls)
        terms = []
        for _ in range(count):
            x = dequantize(x0, row.low, row.high, grey_levels, generator)
            terms.append(self.density(denoiser, x, probe_vectors(x, self.probe, self.probes, generator)))
        prior, log_det = (torch.stack(term) for term in zip(*terms, strict=True))  # (K, B) each
        nats = (prior + log_det).double()
        gain = ((-nats).logsumexp(0) - math.log(count) + nats.mean(0)).to(prior)
        bin_volume = dimensions * math.log((row.high - row.low) / grey_levels)
        return Flow(prior.mean(0), log_det.mean(0), -gain - bin_volume, denoiser.nfe - calls)

    def protocol(self) -> dict[str, Any]:
        """The settings that determine the value, besides model and data."""
        names = (
            "rtol",
            "atol",
            "t_min",
            "probe",
            "probes",
            *(("dequantizations",) if self.dequantizations > 1 else ()),
        )
        return {"method": "flow", **{name: getattr(self, name) for name in names}, "precision": str(self.dtype)}

    def density(self, denoiser: Denoiser, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(prior, log_det) of -log p at x (B, ...), each (B,); `vectors` are `probe_vectors`."""
        t_min, std = denoiser.process.t_train_min if self.t_min is None else self.t_min, denoiser.process.prior_std
        ((z, log_det),) = solve(denoiser, x, (t_min, 1.0), self.rtol, self.atol, "bs5", vectors)
        prior = 0.5 * (z / std).square().flatten(1).sum(1) + x[0].numel() * math.log(std * math.sqrt(2 * math.pi))
        return prior, -log_det


def dequantize(x: Tensor, low: float, high: float, grey_levels: int, generator: Generators = None) -> Tensor:
    """Uniform dequantization of pixels with L = `grey_levels` even levels from low to high, of the shape of x.

        low + (high - low) (k + u) / L   for level k = 0..L-1,   u ~ U[0, 1]

    Theis, van den Oord & Bethge 2016, Section 3.1.
    """
    level = (x - low) / (high - low) * (grey_levels - 1)
    # Always drawn in float64, so that the random numbers do not depend on the precision of x.
    u = torch.special.ndtr(draw(x.shape, generator, torch.float64)).to(x)
    return low + (high - low) * (level + u) / grey_levels
