"""Steps of the reverse SDE dx = (f x - g^2 score) dt + g dw, and of its probability-flow ODE, in the process's time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffusion_lab.sampler.step import Step


@dataclass(frozen=True)
class ReverseDiffusion(Step):
    """Discretises the reverse SDE as the forward one, x_t = k x_s + sqrt(v) z; Song et al. 2021, Eq. 46.

        x_s = (2 - k) x_t + v score + sqrt(v) z,   (k, v) = process.discretize(s, t)

    Args:
        probability_flow: half the score and no noise: the same step of the ODE (Song et al. 2021, Eq. 13).
    """

    probability_flow: bool = False

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        k, v = p.discretize(s, t)
        drift, std = (v / 2, 0.0) if self.probability_flow else (v, math.sqrt(v))
        return (2 - k) * x + drift * denoise(x, t).score + noise(std)


@dataclass(frozen=True)
class EulerMaruyama(Step):
    """Euler-Maruyama on the reverse SDE with h = t - s; Song et al. 2021, Eq. 6 and Appendix G.

        x_s = (1 - f h) x_t + g^2 h score + g sqrt(h) z

    Args:
        probability_flow: half the score and no noise: Euler's step of the ODE (Song et al. 2021, Eq. 13).
    """

    probability_flow: bool = False

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, f, g = t - s, p.f(t), p.g(t)
        drift, std = (g**2 * h / 2, 0.0) if self.probability_flow else (g**2 * h, g * math.sqrt(h))
        return (1 - f * h) * x + drift * denoise(x, t).score + noise(std)
