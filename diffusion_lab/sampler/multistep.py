"""Multistep solvers: one network evaluation a step, combined with predictions of earlier steps.

With lambda = log(alpha / sigma) and n = sigma / alpha = e^-lambda, the probability-flow ODE is solved exactly but for
one integral (Lu et al. 2022, Proposition 3.1; 2022b, Proposition 4.1; Zhang & Chen 2022, Eq. 11):

    x_s = (sigma_s / sigma_t) x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(lambda) dlambda
    x_s = (alpha_s / alpha_t) x_t + alpha_s int_{n_t}^{n_s} eps(n) dn

and a solver is a polynomial through the last predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Prediction, Solver


def earlier(past: Sequence[Prediction], t: float, most: int) -> list[Prediction]:
    """The last prediction at each time other than t, the latest first."""
    return list({one.t: one for one in reversed(past) if one.t != t}.values())[::-1][:most]


def weighted(weights: Sequence[float], terms: Sequence[Any]) -> Any:
    """sum_k weight_k term_k."""
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def final_order(p: ScalarProcess, t: float, order: int, lower: bool) -> int:
    """The order of a step at t; with `lower`, at most the number of remaining steps, the denoising step included."""
    return min(order, len(p.times) - p.times.index(t) - (not p.denoised)) if lower else order


@dataclass(frozen=True)
class DPMSolver(Solver):
    """DPM-Solver++ (2M, 3M) in multistep form; Lu et al. 2022b (arXiv:2211.01095), Algorithm 2 and Appendix B.

    With h = lambda_s - lambda_t, phi_1 = 1 - e^-h, phi_2 = 1 - phi_1 / h, phi_3 = 1/2 - phi_2 / h, and D_1, D_2 the
    derivatives of x0_hat in units of h (for order 2: D_1 = (x0_0 - x0_1) h / (lambda_t - lambda_before)),

        order 2:  x_s = (sigma_s / sigma_t) x_t + alpha_s phi_1 (x0_0 + D_1 / 2)
        order 3:  x_s = (sigma_s / sigma_t) x_t + alpha_s (phi_1 x0_0 + phi_2 D_1 + phi_3 D_2)

    The first steps have the order that the predictions made so far allow; order 1 is DDIM.

    Args:
        stochastic: solve the reverse SDE (SDE-DPM-Solver++; Section 5): 2h stands for h in every phi, and
            (sigma_s / sigma_t) e^-h x_t + sigma_s sqrt(1 - e^-2h) z for (sigma_s / sigma_t) x_t.  Order 1 is DDIM with
            eta = 1.
        predicts: "x0" is DPM-Solver++; "eps" the noise-prediction DPM-Solver of Lu et al. 2022 (arXiv:2206.00927):
            alpha and sigma change places, h its sign, and eps_hat stands for x0_hat.
        lower_order_final: the last steps have the order of the steps that are left, for short grids.
    """

    order: Literal[1, 2, 3] = 2
    stochastic: bool = False
    predicts: Literal["x0", "eps"] = "x0"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stochastic and self.predicts == "eps":
            raise ValueError("stochastic=true solves the SDE in terms of x_0: set sampler.predictor.predicts=x0")

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, order = p.lambda_(s) - p.lambda_(t), final_order(p, t, self.order, self.lower_order_final)
        known = [denoise(x, t), *earlier(past, t, order - 1)]
        back = [(p.lambda_(one.t) - p.lambda_(t)) / h for one in known[1:]]
        if self.predicts == "eps":
            weights = dpm_weights(-h, back)
            return p.alpha(s) / p.alpha(t) * x + p.sigma(s) * weighted(weights, [one.eps for one in known])
        reach = 2 * h if self.stochastic else h
        std = p.sigma(s) * math.sqrt(-math.expm1(-2 * h)) if self.stochastic else 0.0
        scale, weights = p.sigma(s) / p.sigma(t) * math.exp(h - reach), dpm_weights(reach, back)
        return scale * x + p.alpha(s) * weighted(weights, [one.x0 for one in known]) + noise(std)


def dpm_weights(h: float, back: Sequence[float]) -> list[float]:
    """Weights of the last predictions, made at lambda_t + (0, *back) h, in phi_1 D_0 + phi_2 D_1 + phi_3 D_2.

    Of order 3, D_2 is the second divided difference, half the derivative that would make the order 3: the form of the
    authors' program, which every published number of "3M" has used.
    """
    phi_1 = -math.expm1(-h)
    if not back:
        return [phi_1]
    r_1 = -back[0]
    if len(back) == 1:
        return [phi_1 * (1 + 0.5 / r_1), -phi_1 * 0.5 / r_1]
    phi_2 = 1 - phi_1 / h
    phi_3, r_2 = 0.5 - phi_2 / h, back[0] - back[1]
    # In differences of predictions: D_1 = near + r_1 / (r_1 + r_2) (near - far), D_2 = (near - far) / (r_1 + r_2).
    near, far = np.array([1.0, -1.0, 0.0]) / r_1, np.array([0.0, 1.0, -1.0]) / r_2
    second = (near - far) / (r_1 + r_2)
    return (phi_1 * np.array([1.0, 0.0, 0.0]) + phi_2 * (near + r_1 * second) + phi_3 * second).tolist()


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC; Zhao et al. 2023 (arXiv:2302.04867), Algorithms 5 to 7, in terms of x_0.

    A predictor of order p through the last p predictions, refined (UniC) by the one at the point it reached, which then
    serves the next step: one evaluation a step.  B(h) is h ("bh1") or e^h - 1 ("bh2") with h = -(lambda_s - lambda_t).
    """

    order: Literal[1, 2, 3] = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = False

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h, order = p.lambda_(s) - p.lambda_(t), final_order(p, t, self.order, self.lower_order_final)
        now = past[0] if past and past[0].t == t else denoise(x, t)
        known = [now, *earlier(past, t, order - 1)]
        back = [(p.lambda_(one.t) - p.lambda_(t)) / h for one in known[1:]]
        moved, x0s = p.sigma(s) / p.sigma(t) * x, [one.x0 for one in known]
        predicted = moved + p.alpha(s) * weighted(self.weights(-h, back), x0s)
        x0s.append(denoise(predicted, s).x0)
        return moved + p.alpha(s) * weighted(self.weights(-h, [*back, 1.0]), x0s)

    def last(self, p, x, t, denoise, noise, past) -> Any:
        """x_0 as predicted at the point that the last step reached before it was refined."""
        return past[0].x0 if past and past[0].t == t else denoise(x, t).x0

    def weights(self, h: float, places: list[float]) -> list[float]:
        """Weights of x_0 as predicted at lambda_t and at lambda_t + place (lambda_s - lambda_t) for each place."""
        phi_1 = math.expm1(h)
        bound = {"bh1": h, "bh2": phi_1}[self.variant]
        if not places:
            return [-phi_1]
        right, phi = [], phi_1 / h - 1
        for k in range(1, len(places) + 1):
            right.append(phi * math.factorial(k) / bound)
            phi = phi / h - 1 / math.factorial(k + 1)
        r = np.array(places)
        # One place leaves 1/2 to good order, as published.
        rho = np.linalg.solve(np.stack([r**k for k in range(len(r))]), right) if len(r) > 1 else np.array([0.5])
        others = -bound * rho / r
        return [-phi_1 - others.sum().item(), *others.tolist()]


PLACES, SHARES = ((a + b) / 2 for a, b in zip(np.polynomial.legendre.leggauss(32), (1, 0), strict=True))
"""Gauss's rule on [0, 1]."""


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Integrates a polynomial through the last predictions of eps: x_s / alpha_s = x_t / alpha_t + int eps dn.

    The polynomial is one in
        "sigma", n = sigma / alpha: the linear multistep method of k-diffusion (LMS), order 4 there;
        "t": tAB-DEIS of Zhang & Chen 2022 (arXiv:2204.13902), Section 3.3, orders 1 to 3 there;
        "log_sigma", log n: the form in which diffusers has DEIS.

    The first steps have the order that the predictions made so far allow; order 1 is DDIM.
    """

    order: Literal[1, 2, 3, 4] = 4
    variable: Literal["sigma", "t", "log_sigma"] = "sigma"

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        known = [denoise(x, t), *earlier(past, t, self.order - 1)]
        weights = self.weights(p, t, s, [one.t for one in known])
        return p.alpha(s) * (x / p.alpha(t) + weighted(weights, [one.eps for one in known]))

    def weights(self, p: ScalarProcess, t: float, s: float, nodes: Sequence[float]) -> list[float]:
        """The integrals over n from t to s of Lagrange's polynomials, which are 1 at one of the nodes and 0 at others.

        Gauss's rule in log n, in which n is an exponential whatever the process; in its time it need not be smooth.
        """
        h, ratios = p.lambda_(t) - p.lambda_(s), np.array([p.noise_to_signal(node) for node in nodes])
        n = ratios[0] * np.exp(h * PLACES)
        if self.variable == "t":
            u, at = np.array(p.inside(t, s, tuple(PLACES.tolist()))), np.array(nodes)
        else:
            u, at = (n, ratios) if self.variable == "sigma" else (np.log(n), np.log(ratios))
        measure = h * n * SHARES
        return [
            float((measure * np.prod([(u - at[k]) / (at[j] - at[k]) for k in range(len(at)) if k != j], axis=0)).sum())
            for j in range(len(at))
        ]


@dataclass(frozen=True)
class PNDM(Solver):
    """Pseudo linear multistep method (PLMS); Liu et al. 2022 (arXiv:2202.09778), Eqs. 11 to 13.

    DDIM's step with a combination of the last four predictions of eps in place of the last one (Adams-Bashforth for
    even steps).  The first step takes the mean of eps at both of its ends, two evaluations (Rombach et al.'s program).
    """

    def __call__(self, p, x, t, s, denoise, noise, past) -> Any:
        h = p.noise_to_signal(s) - p.noise_to_signal(t)
        y, eps = x / p.alpha(t), [denoise(x, t).eps, *(one.eps for one in earlier(past, t, 3))]
        if len(eps) == 1:
            eps.append(denoise(p.alpha(s) * (y + h * eps[0]), s).eps)
            return p.alpha(s) * (y + h / 2 * (eps[0] + eps[1]))
        return p.alpha(s) * (y + h * weighted(ADAMS_BASHFORTH[len(eps)], eps))


ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)
}  # fmt: skip
"""Number of predictions -> their weights, the latest first, in a step as long as those before."""
