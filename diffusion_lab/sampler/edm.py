"""Euler and Heun steps with churn: the samplers of Karras et al. 2022 (EDM) for any process."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler.predictor import Move, Predictor, decreasing


class EDM(Predictor):
    """Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, in x/alpha and n = sigma/alpha.

        n_hat = (1 + gamma) n,   x_hat = x + sqrt(n_hat^2 - n^2) s_noise z
        d = (x_hat - x0_hat) / n_hat,   x_s = x_hat + (n_s - n_hat) d,
        order 2:  x_s = x_hat + (n_s - n_hat) (d + d_s) / 2     with d_s at that first x_s

    gamma = min(churn / steps, sqrt(2) - 1) for n in [s_min, s_max], else 0, at every step, also at the last one, to
    n = 0.  Order 1 without churn is DDIM; order 2
    is Heun's method, two evaluations a step.
    """

    reuse = False

    def __init__(
        self,
        order: Literal[1, 2] = 2,
        churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"EDM's sampler has order 1 (Euler) or 2 (Heun), got {order}")
        if churn < 0 or s_noise <= 0:
            raise ValueError(f"churn must be >= 0 and s_noise > 0, got {churn} and {s_noise}")
        self.order, self.churn, self.s_min, self.s_max, self.s_noise = order, churn, s_min, s_max, s_noise

    def raised(self, process: NoiseProcess, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, n_hat, t_hat) at `times`, each (S,), float64.

        A continuous process knows times later than t = 1, so that the first step churns too, as published.  Discrete
        levels end there: n_hat is at most their largest (NVlabs' `round_sigma` takes the nearest level).
        """
        noise = (-process.log_snr(times) / 2).exp()
        churned = (noise >= self.s_min) & (noise <= self.s_max)
        raised = noise * (1 + churned.double() * min(self.churn / len(times), math.sqrt(2) - 1))
        latest = torch.tensor(process.t_max, dtype=torch.float64)
        raised = raised.minimum(noise[0].maximum((-process.log_snr(latest) / 2).exp()))
        later = process.time(-2 * raised.log(), process.t_max)
        return noise, raised, torch.where(raised > noise, later, times)

    def moves(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        decreasing(times)
        noise, raised, late = self.raised(process, times)
        numbers = (k.tolist() for k in (late, times, raised, noise, process.alpha(late), process.alpha(times)))
        (late, times, raised, noise, alpha_late, alpha), moves = numbers, []
        for i, s in enumerate(times[1:]):
            t, n, n_s, alpha_s = late[i], raised[i], noise[i + 1], alpha[i + 1]
            scale, ratio = alpha_s / alpha_late[i], n_s / n
            churn = self.churning(noise[i], n, alpha[i], alpha_late[i])
            half = (n_s - n) / 2  # times d and d_s, where d_s is at x_s = ratio x_hat + (1 - ratio) x0_hat
            refine = (
                scale * (1 + half / n + half / n_s * ratio),
                (-alpha_s * half / n_s, alpha_s * (half / n_s * (1 - ratio) - half / n)),
            )
            moves.append(
                Move(t, s, scale * ratio, (alpha_s * (1 - ratio),), 0.0, churn, refine if self.order == 2 else None)
            )
        return moves

    def last(self, process: NoiseProcess, times: Tensor) -> Move | None:
        """The Euler step to n = 0, which gives x_0 as guessed after the churn."""
        noise, raised, late = (k[-1] for k in self.raised(process, times))
        churn = self.churning(*(k.item() for k in (noise, raised, process.alpha(times[-1]), process.alpha(late))))
        return Move(late.item(), 0.0, 0.0, (1.0,), 0.0, churn) if churn else None

    def churning(self, noise: float, raised: float, alpha: float, alpha_late: float) -> tuple[float, float] | None:
        """`Move.churn` from noise n and scale alpha to n_hat and alpha_late; None without churn."""
        added = self.s_noise * math.sqrt(max(raised**2 - noise**2, 0.0)) * alpha_late
        return (alpha_late / alpha, added) if added > 0 else None
