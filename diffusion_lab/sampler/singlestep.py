"""Singlestep solvers: several network evaluations between t and s, and no history."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from diffusion_lab.ranges import Fraction, NonNegative, Positive
from diffusion_lab.sampler.ancestral import ancestral_step
from diffusion_lab.sampler.step import Solver


@dataclass(frozen=True)
class DPMSolverSingle(Solver):
    """DPM-Solver-1, 2 and 3; Lu et al. 2022 (arXiv:2206.00927), Eq. 3.7, Algorithms 1 and 2.

    `order` evaluations a step.  With h = lambda_s - lambda_t, E(r) = e^(r h) - 1, r = 1/2 (order 2) or 1/3, u the point
    that order 1 reaches at lambda_t + r h, and D = eps(u) - eps(x):

        order 1:  x_s = (alpha_s / alpha_t) x - sigma_s E(1) eps
        order 2:  ... - sigma_s E(1) D
        order 3:  ... - sigma_s / r_2 (E(1) / h - 1) D_2, D_2 = eps(u_2) - eps(x) at r_2 = 2/3
    """

    order: Literal[1, 2, 3] = 3

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, eps, r = p.lambda_(s) - p.lambda_(t), denoise(x, t).eps, 1 / self.order
        grown = lambda r: math.expm1(r * h)  # noqa: E731
        first = lambda u, r: p.alpha(u) / p.alpha(t) * x - p.sigma(u) * grown(r) * eps  # noqa: E731
        if self.order == 1:
            return first(s, 1.0)
        t_1 = p.between(t, s, r)
        d = denoise(first(t_1, r), t_1).eps - eps
        if self.order == 2:
            return first(s, 1.0) - p.sigma(s) * grown(1.0) * d
        t_2 = p.between(t, s, 2 * r)
        u = first(t_2, 2 * r) - p.sigma(t_2) * 2 * (grown(2 * r) / (2 * r * h) - 1) * d
        return first(s, 1.0) - p.sigma(s) * 1.5 * (grown(1.0) / h - 1) * (denoise(u, t_2).eps - eps)


@dataclass(frozen=True)
class DPMSolver2S(Solver):
    """DPM-Solver++ (2S); Lu et al. 2022b (arXiv:2211.01095), Algorithm 1; two evaluations a step.

    u at lambda_t + r h:  u = (sigma_u / sigma_t) x + alpha_u (1 - e^(-r h)) x0,
    x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^-h) ((1 - 1/(2r)) x0 + 1/(2r) x0(u))
    """

    r: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, x0 = p.lambda_(s) - p.lambda_(t), denoise(x, t).x0
        t_u = p.between(t, s, self.r)
        u = p.sigma(t_u) / p.sigma(t) * x - p.alpha(t_u) * math.expm1(-self.r * h) * x0
        d = (1 - 0.5 / self.r) * x0 + 0.5 / self.r * denoise(u, t_u).x0
        return p.sigma(s) / p.sigma(t) * x - p.alpha(s) * math.expm1(-h) * d


@dataclass(frozen=True)
class DPMpp2SAncestral(Solver):
    """DPM-Solver++ (2S) to a lower noise, then fresh noise (Katherine Crowson, k-diffusion).

    In y = x / alpha and n = sigma / alpha: (down, up) = ancestral_step(n, n_s, eta), a step of `DPMSolver2S` from n to
    down, and y_s = y + s_noise up z.  Where eta > 1 leaves down = 0, that step is one to x0_hat.
    """

    eta: NonNegative = 1.0
    s_noise: Positive = 1.0

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        n, y, x0 = p.noise_to_signal(t), x / p.alpha(t), denoise(x, t).x0
        down, up = ancestral_step(n, p.noise_to_signal(s), self.eta)
        if down > 0:
            middle = math.sqrt(n * down)  # of lambda
            t_u = p.time(-math.log(middle))
            x0 = denoise(p.alpha(t_u) * (middle / n * y + (1 - middle / n) * x0), t_u).x0
        y = down / n * y + (1 - down / n) * x0
        return p.alpha(s) * y + noise(p.alpha(s) * self.s_noise * up)


@dataclass(frozen=True)
class DPMppSDE(Solver):
    """DPM-Solver++ of the SDE with noise between its two evaluations (Katherine Crowson, k-diffusion).

    In y = x / alpha and n = sigma / alpha, with x0 at n and x0_u at the point u at lambda_t + r h:

        y_u = (down_u / n) y + (1 - down_u / n) x0 + up_u z_u
        y_s = (down / n) y + (1 - down / n) ((1 - 1/(2r)) x0 + 1/(2r) x0_u) + up z

    where (down, up) = ancestral_step, and z_u and z are increments of one Brownian motion in n.
    """

    eta: NonNegative = 1.0
    s_noise: Positive = 1.0
    r: Fraction = 0.5

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        t_u = p.between(t, s, self.r)
        n, n_u, n_s = (p.noise_to_signal(time) for time in (t, t_u, s))
        y, x0, z_u = x / p.alpha(t), denoise(x, t).x0, noise()
        down, up = ancestral_step(n, n_u, self.eta)
        u = down / n * y + (1 - down / n) * x0 + self.s_noise * up * z_u
        d = (1 - 0.5 / self.r) * x0 + 0.5 / self.r * denoise(p.alpha(t_u) * u, t_u).x0
        down, up = ancestral_step(n, n_s, self.eta)
        covered = (n - n_u) / (n - n_s)  # of the step's Brownian motion, by z_u
        z = math.sqrt(covered) * z_u + noise(math.sqrt(1 - covered))
        return p.alpha(s) * (down / n * y + (1 - down / n) * d + self.s_noise * up * z)


TABLEAUX: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "midpoint": (((), (0.5,)), (0.0, 1.0)),
    "heun": (((), (1.0,)), (0.5, 0.5)),
    "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Butcher's tableaux: the rows of coefficients of the stages, and the weights of their slopes."""


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta step of the probability-flow ODE, with as many evaluations as the method has stages.

    Args:
        method: "midpoint", "heun" or "rk4", the classical one.
        time: "sigma" solves d(x / alpha) / dn = eps in n = sigma / alpha; "t" dx/dt = f x + g^2 / (2 sigma) eps in the
            process's own time.
    """

    method: Literal["midpoint", "heun", "rk4"] = "rk4"
    time: Literal["sigma", "t"] = "sigma"

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        (rows, weights), in_t, n = TABLEAUX[self.method], self.time == "t", p.noise_to_signal(t)
        y, h = (x, s - t) if in_t else (x / p.alpha(t), p.noise_to_signal(s) - n)
        slopes: list[Any] = []
        for row in rows:
            c = sum(row)
            at = {0: t, 1: s}[c] if c in (0, 1) else t + c * h if in_t else p.time(-math.log(n + c * h))
            u = y + h * sum(a * slope for a, slope in zip(row, slopes, strict=True)) if slopes else y
            if in_t:
                slopes.append(p.f(at) * u + p.g(at) ** 2 / (2 * p.sigma(at)) * denoise(u, at).eps)
            else:
                slopes.append(denoise(p.alpha(at) * u, at).eps)
        y = y + h * sum(b * slope for b, slope in zip(weights, slopes, strict=True))
        return y if in_t else p.alpha(s) * y
