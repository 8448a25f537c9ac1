"""The parameterization table, one row per paper: what the network predicts, its noise conditioning and image range.

Every output is converted into an estimate of the noise eps in x = alpha x_0 + sigma eps; estimates of x_0, the score
and v follow from it (`denoiser.Estimate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import Finite, NonNegative, Positive, check_fields

Output = Literal["eps", "x0", "v", "u", "edm", "score", "scaled_score"]
NoiseConditioning = Literal[
    "level", "level_of_1000", "level_from_top", "time", "time_999", "log_sigma", "quarter_log_sigma", "nothing"
]

TO_EPS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda out, x, alpha, sigma: out,
    "x0": lambda out, x, alpha, sigma: (x - alpha * out) / sigma,
    # v = alpha eps - sigma x_0 (Salimans & Ho 2022, Appendix D), solved together with x = alpha x_0 + sigma eps.
    "v": lambda out, x, alpha, sigma: (sigma * x + alpha * out) / (alpha**2 + sigma**2),
    # u = eps - x_0, the velocity of x = (1 - t) x_0 + t eps (Lipman et al. 2023, Liu et al. 2023).
    "u": lambda out, x, alpha, sigma: (x + alpha * out) / (alpha + sigma),
    # F of Karras et al. 2022, Eq. 7: -v of x / sqrt(alpha^2 + sigma^2), for data of unit variance.
    "edm": lambda out, x, alpha, sigma: (
        (sigma * x - alpha * (alpha**2 + sigma**2) ** 0.5 * out) / (alpha**2 + sigma**2)
    ),
    "score": lambda out, x, alpha, sigma: -sigma * out,
    "scaled_score": lambda out, x, alpha, sigma: -out,
}
"""(output, x, alpha, sigma) -> eps for each meaning of the output."""


def boundary_eps(output: Any, x: Any, alpha: Any, sigma: Any, boundary: float) -> Any:
    """eps of EDM's output with x_0 = x / alpha at n = sigma / alpha = boundary; Song et al. 2023, Appendix C.

    x_0 = x / alpha / (m^2 + 1) + output m / sqrt(n^2 + 1),   m = n - boundary,   for data of unit variance.
    """
    m = sigma - boundary * alpha  # times alpha
    return (x * m**2 / (m**2 + alpha**2) - output * alpha * m / (alpha**2 + sigma**2) ** 0.5) / sigma


CONDITIONING: dict[str, Callable[[NoiseProcess, Tensor], Tensor]] = {
    "level": lambda process, t: (process.level(t) - 1).clamp(min=0),
    "level_of_1000": lambda process, t: (process.level(t) - 1).clamp(min=0) * (1000 / process.levels),
    "level_from_top": lambda process, t: process.levels - process.level(t).clamp(min=1),
    "time": lambda process, t: t,
    "time_999": lambda process, t: 999 * t,
    "log_sigma": lambda process, t: process.sigma(t).log(),
    "quarter_log_sigma": lambda process, t: process.log_snr(t) / -8,
    "nothing": lambda process, t: torch.zeros_like(t),
}
"""(process, t) -> c_noise, the network's noise conditioning: DDPM's zero-based level, IDDPM's in units of T/1000,
NCSN's level counted from the largest sigma (all real-valued between two levels), flow matching's t, ScoreSDE's 999 t,
NCSN++'s log sigma, EDM's log(sigma / alpha) / 4, or nothing (NCSNv2)."""


@dataclass(frozen=True)
class Parameterization:
    """One row of the parameterization table.

    Args:
        output: meaning of the network's output, a key of `TO_EPS`; "scaled_score" is sigma * score = -eps.
        c_noise: the network's noise conditioning, a key of `CONDITIONING`.
        low, high: image range inside the model ([-1, 1] for DDPM, [0, 1] for NCSN); the network's input is rescaled
            from this range to [-1, 1], as in every published network.
        bounded: whether images have this range.  False for latents, fields and other real numbers, which are neither
            scaled nor clipped.
        learned_range: the network has twice as many output channels; the second half is the variance of reverse steps
            between its two fixed choices (`Estimate.fraction`).
        unit_input: divide the network's input by sqrt(alpha^2 sigma_data^2 + sigma^2), its standard deviation.  This is
            1 for DDPM; a network needs it when sigma grows to 50.
        boundary: for output "edm", sigma / alpha where the estimate of x_0 is x / alpha, as consistency models need
            at their smallest noise level (`boundary_eps`); EDM has 0.
        sigma_data: standard deviation of the data inside the model; the network predicts data divided by it (EDM: 0.5).
            None: data are predicted as they are, and `unit_input` takes them to have unit variance in the network's
            input.

    Raises:
        ValueError: if an option is unknown, low >= high, or another output than "edm" has a boundary.
    """

    ORDERED: ClassVar = (("low", "high"),)

    output: Output = "eps"
    c_noise: NoiseConditioning = "level"
    low: Finite = -1.0
    high: Finite = 1.0
    unit_input: bool = False
    bounded: bool = True
    learned_range: bool = False
    sigma_data: Positive | None = None
    boundary: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.boundary and self.output != "edm":
            raise ValueError(f"boundary={self.boundary:g} needs output=edm; with output={self.output} leave it at 0")

    def range_of(self, shape: Sequence[int]) -> tuple[float, float] | None:
        """[low, high] for images of shape (B, C, H, W); None for points and for unbounded data."""
        return (self.low, self.high) if self.bounded and len(shape) == 4 else None

    def network_input(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's input at x: images (B, C, H, W) rescaled from [low, high] to [-1, 1], other data unchanged."""
        low, high = self.range_of(x.shape) or (-1.0, 1.0)
        scale, shift = 2 / (high - low), (low + high) / (high - low)
        if (scale, shift) != (1.0, 0.0):
            x = scale * x - shift
        if not self.unit_input:
            return x
        sigma_data = 1.0 if self.sigma_data is None else scale * self.sigma_data
        return x / ((alpha * sigma_data) ** 2 + (scale * sigma) ** 2).sqrt()

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output that determines eps, and the fraction v of a learned range of variances (None: not learned).

        v = (second half of the output + 1) / 2, unbounded, as in Nichol & Dhariwal's program.
        """
        if not self.learned_range:
            return output, None
        output, second = output.chunk(2, dim=1)
        return output, (second + 1) / 2

    def eps(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Convert the network's output into an estimate of eps, of the shape of x."""
        unit = 1.0 if self.sigma_data is None else self.sigma_data
        if self.sigma_data is not None:
            x, sigma = x / unit, sigma / unit
        if self.boundary:
            return boundary_eps(output, x, alpha, sigma, self.boundary / unit)
        return TO_EPS[self.output](output, x, alpha, sigma)

    def conditioning(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """c_noise at t, of the shape of t."""
        return CONDITIONING[self.c_noise](process, t)
