"""A noise process at times that are Python floats: what the step of a sampler computes its coefficients from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess, Variance

Pair = tuple[float, float]


class ScalarProcess:
    """alpha, sigma and what follows from them as Python floats, computed in float64.

    A step of a sampler is recorded once for each interval of the grid.  Scalar tensors would make that slow, so all
    times of the grid are computed at once, and other times when they are first asked for.

    Args:
        process: the noise process.
        times: the sampler's grid, decreasing, (S,).
        denoised: whether a denoising step leads from the last of these times to t = 0.
    """

    def __init__(self, process: NoiseProcess, times: Tensor | Sequence[float], denoised: bool = True) -> None:
        grid = torch.as_tensor(times, dtype=torch.float64)
        self.process, self.grid, self.times, self.denoised = process, grid, grid.tolist(), denoised
        self.t_min, self.t_max, self.levels = process.t_min, process.t_max, process.levels
        self._position = {t: i for i, t in reversed(list(enumerate(self.times)))}
        self._alpha_sigma: dict[float, Pair] = {}
        self._discretized: dict[Pair, Pair] = {}
        self._f_g: dict[float, Pair] = {}
        self._kept: dict[float, Pair] = {}
        self._inside: dict[tuple[float, ...], dict[Pair, list[float]]] = {}
        self._table: tuple[Tensor, Tensor] | None = None

    def index(self, t: float) -> int:
        """Position of a time of the grid."""
        return self._position[t]

    def alpha_sigma(self, t: float) -> Pair:
        """(alpha, sigma)."""
        return self._known(self._alpha_sigma, t, lambda times: self.process.alpha_sigma(times))

    def alpha(self, t: float) -> float:
        """Signal scale."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: float) -> float:
        """Noise scale."""
        return self.alpha_sigma(t)[1]

    def noise_to_signal(self, t: float) -> float:
        """sigma / alpha: EDM's sigma, at which x / alpha is x_0 + (sigma / alpha) eps."""
        alpha, sigma = self.alpha_sigma(t)
        return sigma / alpha

    def lambda_(self, t: float) -> float:
        """lambda = log(alpha / sigma), half the log-SNR (Lu et al. 2022)."""
        alpha, sigma = self.alpha_sigma(t)
        return math.log(alpha) - math.log(sigma)

    def f(self, t: float) -> float:
        """Drift coefficient."""
        return self._known(self._f_g, t, lambda times: (self.process.f(times), self.process.g(times)))[0]

    def g(self, t: float) -> float:
        """Diffusion coefficient."""
        return self._known(self._f_g, t, lambda times: (self.process.f(times), self.process.g(times)))[1]

    def time(self, lambda_: float) -> float:
        """The time in (0, t_max] at which log(alpha / sigma) has a value; the nearest end beyond its range.

        A bracket from a table, then searches among 64 points at a time.
        """
        if self._table is None:
            t = torch.linspace(0, self.process.t_max, 1025, dtype=torch.float64)[1:]
            self._table = t, -self.process.log_snr(t) / 2
        t, falling = self._table
        right = int(torch.searchsorted(falling, -lambda_).clamp(0, len(t) - 1))
        low, high = (t[right - 1].item() if right else 0.0), t[right].item()
        inner = torch.arange(1, 64, dtype=torch.float64) / 64
        for _ in range(8):
            points = low + (high - low) * inner
            before = int((self.process.log_snr(points) / 2 > lambda_).sum())
            low, high = (points[before - 1].item() if before else low), (points[before].item() if before < 63 else high)
        return high

    def between(self, t: float, s: float, fraction: float) -> float:
        """The time at lambda_t + fraction (lambda_s - lambda_t)."""
        return self.inside(t, s, (fraction,))[0]

    def inside(self, t: float, s: float, fractions: tuple[float, ...]) -> list[float]:
        """Times at lambda_t + fraction (lambda_s - lambda_t); computed for all intervals of the grid at once."""
        known = self._inside.setdefault(fractions, {})
        if (t, s) not in known:
            pairs = list(zip(self.times, self.times[1:], strict=False))
            pairs = pairs if (t, s) in set(pairs) else [(t, s)]
            late, early = self.process.log_snr(torch.tensor(pairs, dtype=torch.float64))[..., None].unbind(1)
            times = self.process.time(torch.lerp(late, early, torch.tensor(fractions, dtype=torch.float64)))
            known.update(zip(pairs, times.tolist(), strict=True))
        return known[t, s]

    def transition(self, s: float, t: float) -> Pair:
        """(scale, variance) of q(x_t | x_s), s < t."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.alpha_sigma(s), self.alpha_sigma(t)
        scale = alpha_t / alpha_s
        return scale, max(sigma_t**2 - (scale * sigma_s) ** 2, 0.0)

    def posterior(self, s: float, t: float) -> tuple[float, float, float]:
        """(a, b, variance) of q(x_s | x_t, x_0) = N(a x_t + b x_0, variance I)."""
        (scale, v), (alpha_s, sigma_s), sigma_t = self.transition(s, t), self.alpha_sigma(s), self.sigma(t)
        kept = (sigma_s / sigma_t) ** 2
        return scale * kept, alpha_s * v / sigma_t**2, v * kept

    def reverse_variance(self, s: float, t: float, variance: Variance) -> float:
        """Variance of the model's step from t to s, as `NoiseProcess.reverse_variance`."""
        return {"fixed_small": self.posterior(s, t)[2], "fixed_large": self.transition(s, t)[1]}[variance]

    def discretize(self, s: float, t: float) -> Pair:
        """(scale, variance) of the forward step from s to t as the method discretises it."""
        if (s, t) not in self._discretized:
            late, early = self.grid[:-1], self.grid[1:]
            if t not in self._position or s not in self._position or self._position[s] != self._position[t] + 1:
                late, early = (torch.tensor([end], dtype=torch.float64) for end in (t, s))
            found = zip(*(k.tolist() for k in (early, late, *self.process.discretize(early, late))), strict=True)
            self._discretized.update({(s, t): (scale, variance) for s, t, scale, variance in found})
        return self._discretized[s, t]

    def signal_kept(self, t: float) -> float:
        """(alpha_t / alpha_s)^2 with s one level, or a thousandth of the clock, before t: 1 - beta_t."""

        def kept(late: Tensor) -> tuple[Tensor, Tensor]:
            scale, variance = self.process.discretize((late - 1 / (self.levels or 1000)).clamp(min=0), late)
            return scale**2, variance

        return self._known(self._kept, t, kept)[0]

    def _known(self, table: dict[float, Pair], t: float, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Pair:
        if t not in table:
            times = torch.tensor([t], dtype=torch.float64) if table or t not in self._position else self.grid
            pairs = zip(*(k.tolist() for k in compute(times)), strict=True)
            table.update(zip(times.tolist(), pairs, strict=True))
        return table[t]
