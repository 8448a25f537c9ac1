"""What a network's output means, what it is told of the noise, and the range its images live in: a table, one row a
paper.

Whatever the network outputs is read as a guess of the noise eps in x = alpha x_0 + sigma eps; the other three
views (x_0, score, v) follow from it (see `denoiser.Estimate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_lab.process import NoiseProcess

Output = Literal["eps", "x0", "v", "score", "scaled_score"]
Told = Literal["level", "time_999", "log_sigma"]

TO_EPS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda out, x, alpha, sigma: out,
    "x0": lambda out, x, alpha, sigma: (x - alpha * out) / sigma,
    # v = alpha eps - sigma x_0 (Salimans & Ho 2022, Appendix D), solved together with x = alpha x_0 + sigma eps.
    "v": lambda out, x, alpha, sigma: (sigma * x + alpha * out) / (alpha**2 + sigma**2),
    "score": lambda out, x, alpha, sigma: -sigma * out,
    "scaled_score": lambda out, x, alpha, sigma: -out,
}
"""(output, x, alpha, sigma) -> eps for each meaning of the output."""

CONDITIONING: dict[str, Callable[[NoiseProcess, Tensor], Tensor]] = {
    "level": lambda process, t: t * process.levels - 1,
    "time_999": lambda process, t: 999 * t,
    "log_sigma": lambda process, t: process.sigma(t).log(),
}
"""(process, t) -> the number the network is told: DDPM's zero-based level, ScoreSDE's 999 t, NCSN++'s log sigma."""


@dataclass(frozen=True)
class Parameterization:
    """One row of the table.

    Args:
        output: meaning of the network's output; "scaled_score" is sigma * score = -eps.
        told: what the network is conditioned on.
        low, high: range of the images inside the model ([-1, 1] for DDPM, [0, 1] for NCSN).
        unit_input: divide the network's input by sqrt(alpha^2 + sigma^2), its scale for data of unit variance.  This is
            1 for a variance-preserving process; it keeps a network usable when sigma grows to 50.

    Raises:
        ValueError: if an option is unknown or low >= high.
    """

    output: Output = "eps"
    told: Told = "level"
    low: float = -1.0
    high: float = 1.0
    unit_input: bool = False

    def __post_init__(self) -> None:
        for key, value, table in (("output", self.output, TO_EPS), ("told", self.told, CONDITIONING)):
            if value not in table:
                raise ValueError(f"parameterization {key}={value!r} is unknown; allowed: {', '.join(table)}")
        if not self.low < self.high:
            raise ValueError(f"the image range needs low < high, got [{self.low}, {self.high}]")

    def eps(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise that the network's output stands for, of the shape of x."""
        return TO_EPS[self.output](output, x, alpha, sigma)

    def conditioning(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """The number the network is told at t, of the shape of t."""
        return CONDITIONING[self.told](process, t)
