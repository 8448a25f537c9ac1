"""Predictors: reverse steps from t to s < t, linear in x_t, in guesses of x_0 and in fresh noise.

A predictor is nothing but numbers, so an equation of a paper is all there is to write.  They are computed once for
all steps, in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess, Variance


@dataclass(frozen=True)
class Move:
    """One step to s from the time t at which the network is asked, z ~ N(0, I):

        x_s = a x_t + sum_k b[k] x0_k + c z

    x0_0 is the guess at x_t, x0_1 the one before it, and so on.

    Args:
        churn: (scale, std) of noise added before, x_t = scale x + std z: t is then later than where the last move
            ended.
        refine: (a', b') with which x_s is computed anew, from the same x_t and noise-free, once x0_0 is the guess at
            the first x_s and x0_1 the one at x_t.
    """

    t: float
    s: float
    a: float
    b: tuple[float, ...]
    c: float = 0.0
    churn: tuple[float, float] | None = None
    refine: tuple[float, tuple[float, ...]] | None = None

    def by_output(self, at_t: tuple[float, float], at_s: tuple[float, float]) -> Move:
        """The move by one guess, not clipped, in terms of the network's output: x0 = p x + q output, (p, q) at t and s.

        To refine it, the output at the first x_s serves, and this x_s itself: x0_0 = (x_s - a x_t) / b[0].
        """
        (p, q), (p_s, q_s), (b,), refine = at_t, at_s, self.b, self.refine
        if refine is not None:
            a_s, (b_s, b_t) = refine
            refine = a_s - b_t * self.a / b, (b_s * q_s, b_t / b + b_s * p_s)
        return replace(self, a=self.a + b * p, b=(b * q,), refine=refine)


def decreasing(times: Tensor) -> None:
    """Raise ValueError, for predictors that divide by the length of a step, unless every time is before the last."""
    if (times.diff() >= 0).any():
        raise ValueError(
            "this grid repeats levels, and the sampler needs steps of some length: use fewer sampler.steps, or "
            "another sampler.spacing"
        )


class Predictor(ABC):
    """The moves along a grid of times."""

    reuse = True
    """Whether a guess that refined a move serves the next one too, or the network is asked again at the new x."""

    @abstractmethod
    def moves(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        """The moves between neighbours of `times`, which decrease (float64, (S,)): S - 1 of them.

        Raises:
            ValueError: if the predictor cannot step that far.
        """

    def last(self, process: NoiseProcess, times: Tensor) -> Move | None:
        """The step from the last time to data, where it is another one than x_0 as guessed there."""
        return None


class OneStep(Predictor):
    """A move that knows only where it is: x_s = a x_t + b x0_hat + c z."""

    @abstractmethod
    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) of the steps t -> s, each of the shape of t, float64."""

    def moves(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        t, s = times[:-1], times[1:]
        numbers = (k.tolist() for k in (t, s, *self.coefficients(process, t, s)))
        return [Move(t, s, a, (b,), c) for t, s, a, b, c in zip(*numbers, strict=True)]


class Ancestral(OneStep):
    """Draws from p(x_s | x_t) = q(x_s | x_t, x_0 = x0_hat); Ho et al. 2020, Algorithm 2.

        x_s = (scale sigma_s^2 / sigma_t^2) x_t + (alpha_s v / sigma_t^2) x0_hat + sqrt(variance) z

    with scale = alpha_t / alpha_s and v = sigma_t^2 - scale^2 sigma_s^2.  `variance` is v sigma_s^2 / sigma_t^2
    ("fixed_small"; also Song et al. 2021, Eq. 47, for VE) or v ("fixed_large", beta_t between neighbouring levels;
    Song et al. 2021, Eq. 4, for VP).
    """

    def __init__(self, variance: Variance = "fixed_large") -> None:
        self.variance = variance

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, _ = process.posterior(s, t)
        return a, b, process.reverse_variance(s, t, self.variance).sqrt()


class DDIM(OneStep):
    """Song, Meng & Ermon 2021 (DDIM), Eqs. 12 and 16: deterministic at eta = 0, DDPM's fixed-small at eta = 1.

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,   c = eta sqrt(posterior variance)
    """

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {eta}")
        self.eta = eta

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.eta * process.posterior(s, t)[2].sqrt()
        a = (process.sigma(s) ** 2 - c**2).sqrt() / process.sigma(t)
        return a, process.alpha(s) - a * process.alpha(t), c


class ScoreStep(OneStep):
    """A move written with the score, x_s = p x_t + q score + r z, where score = (alpha_t x0_hat - x_t) / sigma_t^2.

    Args:
        probability_flow: half the score and no noise: the same step of the probability-flow ODE (Song et al. 2021,
            Eq. 13).
    """

    def __init__(self, probability_flow: bool = False) -> None:
        self.probability_flow = probability_flow

    @abstractmethod
    def score_coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(p, q, r) of the stochastic step, each of the shape of t."""

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q, r = self.score_coefficients(process, t, s)
        if self.probability_flow:
            q, r = q / 2, torch.zeros_like(r)
        by_score = q / process.sigma(t) ** 2
        return p - by_score, by_score * process.alpha(t), r


class ReverseDiffusion(ScoreStep):
    """Discretises the reverse SDE as the forward one, x_t = k x_s + sqrt(v) z; Song et al. 2021, Eq. 46.

    x_s = (2 - k) x_t + v score + sqrt(v) z,   (k, v) = process.discretize(s, t)
    """

    def score_coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, variance = process.discretize(s, t)
        return 2 - scale, variance, variance.sqrt()


class EulerMaruyama(ScoreStep):
    """Euler-Maruyama on the reverse SDE with h = t - s; Song et al. 2021, Eq. 6 and Appendix G.

    x_s = (1 - f h) x_t + g^2 h score + g sqrt(h) z
    """

    def score_coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, diffusion = t - s, process.g(t)
        return 1 - process.f(t) * h, diffusion**2 * h, diffusion * h.sqrt()
