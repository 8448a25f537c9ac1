"""Few-step solvers of the probability-flow ODE, and one of the reverse SDE, that remember earlier guesses of x_0.

With lambda = log(alpha / sigma) the ODE's solution is exact up to one integral (Lu et al. 2022b, Proposition 4.1):

    x_s = (sigma_s / sigma_t) x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0_hat(lambda) dlambda

and a solver is a polynomial in lambda through the last guesses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler.predictor import Move, Predictor, decreasing


def nodes(process: NoiseProcess, times: Tensor) -> Iterator[list[float]]:
    """t, alpha, sigma and lambda at `times`, which must decrease."""
    decreasing(times)
    return (k.tolist() for k in (times, *process.scales(times), process.log_snr(times) / 2))


class DPMSolver(Predictor):
    """DPM-Solver++ (2M, 3M) in multistep form; Lu et al. 2022b (arXiv:2211.01095), Algorithm 2 and Appendix B.

    With h = lambda_s - lambda_t, phi_1 = 1 - e^-h, phi_2 = 1 - phi_1 / h, phi_3 = 1/2 - phi_2 / h, and D_1, D_2 the
    derivatives of the guesses in units of h (for order 2: D_1 = (x0_0 - x0_1) h / (lambda_t - lambda_before)),

        order 2:  x_s = (sigma_s / sigma_t) x_t + alpha_s phi_1 (x0_0 + D_1 / 2)
        order 3:  x_s = (sigma_s / sigma_t) x_t + alpha_s (phi_1 x0_0 + phi_2 D_1 + phi_3 D_2)

    The first moves have the order that the guesses made so far allow; order 1 is DDIM.

    Args:
        stochastic: solve the reverse SDE (SDE-DPM-Solver++; Section 5): 2h stands for h in every phi, and
            (sigma_s / sigma_t) e^-h x_t + sigma_s sqrt(1 - e^-2h) z for (sigma_s / sigma_t) x_t.  Order 1 is DDIM with
            eta = 1.
    """

    def __init__(self, order: Literal[1, 2, 3] = 2, stochastic: bool = False) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"DPM-Solver++ has order 1, 2 or 3, got {order}")
        self.order, self.stochastic = order, stochastic

    def moves(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        times, alpha, sigma, lam = nodes(process, times)
        moves = []
        for i in range(len(times) - 1):
            h, order = lam[i + 1] - lam[i], min(self.order, i + 1)
            reach = 2 * h if self.stochastic else h
            phi = -math.expm1(-reach)  # phi_1
            back = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
            if order == 1:
                weights = [phi]
            elif order == 2:
                weights = [phi * (1 - 0.5 / back[0]), phi * 0.5 / back[0]]
            else:
                weights = self.third(reach, phi, *back)
            a, b = sigma[i + 1] / sigma[i] * math.exp(h - reach), tuple(alpha[i + 1] * w for w in weights)
            moves.append(Move(*times[i : i + 2], a, b, sigma[i + 1] * math.sqrt(phi) if self.stochastic else 0.0))
        return moves

    @staticmethod
    def third(h: float, phi_1: float, back_1: float, back_2: float) -> list[float]:
        """Weights of the last three guesses, made at lambda_t + (0, back_1, back_2) h.

        D_2 is the second divided difference, half the derivative that would make the order 3: the form of the
        authors' program, which every published number of "3M" has used.
        """
        phi_2, phi_3 = 1 - phi_1 / h, 0.5 - (1 - phi_1 / h) / h
        r1, r2 = -back_1, back_1 - back_2  # the two last steps, in units of this one
        # D_1 = near + r1 / (r1 + r2) (near - far), D_2 = (near - far) / (r1 + r2), in differences of guesses
        near, far = torch.tensor([1.0, -1.0, 0.0]).double() / r1, torch.tensor([0.0, 1.0, -1.0]).double() / r2
        second = (near - far) / (r1 + r2)
        first = near + r1 * second
        return (phi_1 * torch.tensor([1.0, 0.0, 0.0]).double() + phi_2 * first + phi_3 * second).tolist()


class UniPC(Predictor):
    """UniPC; Zhao et al. 2023 (arXiv:2302.04867), Algorithms 5 to 7, in terms of x_0.

    A predictor of order p through the last p guesses, refined (UniC) by the guess at the point it reached, which then
    serves the next move: one evaluation a step.  B(h) is h ("bh1") or e^h - 1 ("bh2") with h = -(lambda_s - lambda_t).
    """

    def __init__(self, order: Literal[1, 2, 3] = 3, variant: Literal["bh1", "bh2"] = "bh2") -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"UniPC has order 1, 2 or 3, got {order}")
        self.order, self.variant = order, variant

    def moves(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        times, alpha, sigma, lam = nodes(process, times)
        moves = []
        for i in range(len(times) - 1):
            h, order = lam[i + 1] - lam[i], min(self.order, i + 1)
            back = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
            a = sigma[i + 1] / sigma[i]
            predicted = tuple(alpha[i + 1] * w for w in self.weights(-h, back))
            now, *past, arrived = self.weights(-h, [*back, 1.0])
            refined = tuple(alpha[i + 1] * w for w in (arrived, now, *past))
            moves.append(Move(*times[i : i + 2], a, predicted, refine=(a, refined)))
        return moves

    def weights(self, h: float, places: list[float]) -> list[float]:
        """Weights of the guesses at lambda_t and at lambda_t + place (lambda_s - lambda_t) for each of the places."""
        phi_1 = math.expm1(h)
        bound = {"bh1": h, "bh2": phi_1}[self.variant]
        if not places:
            return [-phi_1]
        right, phi = [], phi_1 / h - 1
        for k in range(1, len(places) + 1):
            right.append(phi * math.factorial(k) / bound)
            phi = phi / h - 1 / math.factorial(k + 1)
        r = torch.tensor(places, dtype=torch.float64)
        # One place leaves 1/2 to good order, as published.
        powers = torch.stack([r**k for k in range(len(places))])
        rho = (
            torch.linalg.solve(powers, torch.tensor(right).double())
            if len(places) > 1
            else torch.tensor([0.5]).double()
        )
        others = -bound * rho / r
        return [-phi_1 - others.sum().item(), *others.tolist()]
