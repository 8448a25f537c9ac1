"""A noise process evaluated at Python floats, from which steps compute their coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess, Variance, learned

Pair = tuple[float, float]


class ScalarProcess:
    """alpha, sigma and what follows from them as Python floats, computed in float64.

    A step is recorded once for each interval of the grid.  Scalar tensors would make that slow, so that what depends on
    a time or an interval of the grid is computed for all of them when it is first asked for.

    Args:
        process: the noise process.
        times: the sampler's timesteps, (S,).
        denoised: whether a denoising step leads from the last of these times to t = 0.
    """

    def __init__(self, process: NoiseProcess, times: Tensor | Sequence[float], denoised: bool = True) -> None:
        self.process, self.denoised = process, denoised
        self.times: list[float] = torch.as_tensor(times, dtype=torch.float64).tolist()
        self.t_min, self.t_max, self.levels = process.t_min, process.t_max, process.levels
        self._grid = {1: dict.fromkeys((t,) for t in self.times), 2: dict.fromkeys(pairwise(self.times))}
        self._known: dict[tuple[Hashable, ...], list[float]] = {}

    def _look_up(self, what: Hashable, compute: Callable[..., Sequence[Tensor]], *key: float) -> list[float]:
        """The value of `compute` at a time or an interval, cached; computed at once for all timesteps."""
        if (found := self._known.get((what, *key))) is None:
            keys = list(self._grid[len(key)]) if key in self._grid[len(key)] else [key]
            values = torch.stack(tuple(compute(*torch.tensor(keys, dtype=torch.float64).T)), 1)
            self._known |= {(what, *one): value for one, value in zip(keys, values.tolist(), strict=True)}
            found = self._known[(what, *key)]
        return found

    def alpha_sigma(self, t: float) -> list[float]:
        """alpha and sigma."""
        return self._look_up("alpha_sigma", self.process.alpha_sigma, t)

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
        return self._look_up("f", lambda t: [self.process.f(t)], t)[0]

    def g(self, t: float) -> float:
        """Diffusion coefficient."""
        return self._look_up("g", lambda t: [self.process.g(t)], t)[0]

    def time(self, lambda_: float) -> float:
        """The time in (0, t_max] at which log(alpha / sigma) has a value; the nearest end beyond its range.

        The range of times that holds it is divided by 64 again and again, down to the last digits.
        """
        if (found := self._known.get(("time", lambda_))) is not None:  # stages at one time, and each new batch
            return found[0]
        low, width = 0.0, self.t_max
        for _ in range(10):
            width /= 64
            ends = low + width * torch.arange(1, 64, dtype=torch.float64)
            low += width * int((self.process.log_snr(ends) / 2 > lambda_).sum())
        self._known["time", lambda_] = [low + width]
        return low + width

    def inside(self, t: float, s: float, fractions: tuple[float, ...]) -> list[float]:
        """Times at lambda_t + fraction (lambda_s - lambda_t)."""

        def compute(late: Tensor, early: Tensor) -> Sequence[Tensor]:
            start, end = (self.process.log_snr(times)[:, None] for times in (late, early))
            return self.process.time(torch.lerp(start, end, torch.tensor(fractions, dtype=torch.float64))).unbind(1)

        return self._look_up(fractions, compute, t, s)

    def between(self, t: float, s: float, fraction: float) -> float:
        """The time at lambda_t + fraction (lambda_s - lambda_t)."""
        return self.inside(t, s, (fraction,))[0]

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

    def reverse_variance(self, s: float, t: float, variance: Variance, fraction: Any = None) -> Any:
        """Variance of the model's step from t to s, as `NoiseProcess.reverse_variance`.

        Raises:
            ValueError: for a learned range without a fraction.
        """
        small, large = self.posterior(s, t)[2], self.transition(s, t)[1]
        if variance != "learned_range":
            return {"fixed_small": small, "fixed_large": large}[variance]
        return (learned(fraction) * math.log(large / small) + math.log(small)).exp()

    def discretize(self, s: float, t: float) -> list[float]:
        """Scale and variance of the forward step from s to t as the method discretises it."""
        return self._look_up("discretize", lambda late, early: self.process.discretize(early, late), t, s)

    def signal_kept(self, t: float) -> float:
        """(alpha_t / alpha_s)^2 with s one level, or a thousandth of the clock, before t: 1 - beta_t."""

        def kept(late: Tensor) -> Sequence[Tensor]:
            return [self.process.discretize((late - 1 / (self.levels or 1000)).clamp(min=0), late)[0] ** 2]

        return self._look_up("signal_kept", kept, t)[0]
