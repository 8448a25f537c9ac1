"""Consistency in continuous time: the estimate of x_0 does not change along a trajectory."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lab import noise
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.loss.time_law import TimeLaw
from diffusion_lab.process import broadcast
from diffusion_lab.ranges import Count, Positive, checked


class LossWeight(nn.Module):
    """w(t), linear in 64 random Fourier features of log(sigma / alpha) / 4; it starts at 0.

    exp(w) l - w is smallest where exp(-w) is the mean of the losses l at t, which then count alike (Karras et al. 2024
    (arXiv:2312.02696), Appendix B.2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(64))
        self.register_buffer("phases", torch.rand(64))
        self.linear = nn.Linear(64, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, log_snr: Tensor) -> Tensor:
        """w, shape (B,), for the log-SNR (B,)."""
        angles = -log_snr.to(self.phases)[:, None] / 8 * self.frequencies + self.phases
        return self.linear((2 * math.pi * angles).cos()).flatten()


class ContinuousConsistencyLoss(OneTimeLoss):
    """exp(w) |F - F_frozen + g / (|g| + c)|^2 / D - w per image (sCM; Lu & Song 2025 (arXiv:2410.11081), Algorithm 1).

    The limit of a `ConsistencyLoss` for r -> t.  With the angle a of tan a = sigma / (alpha sigma_data), the estimate
    of x_0 is f = cos(a) X + sin(a) sigma_data F with X = cos(a) x / alpha, and F_frozen is F without gradient.  g is

        g = cos(a) df/da = cos(a)^2 (dX/da + sigma_data F) + r cos(a) sin(a) (sigma_data dF/da - X),    r = 1

    along the trajectory through x, whose direction is that of the teacher's eps (sCD), or of the noise of x without a
    teacher (sCT).  The derivative is one forward-mode pass through the network; r grows from 0 to 1 in the warm-up.
    (The paper's F has the other sign.)  In eval mode, as for held-out data, the loss is |g|^2 / D: 0 for a consistent
    model.

    Args:
        time_law: law of the training times; None: uniform.
        teacher: `FrozenDenoiser`, or a denoiser or model; None: consistency training.
        warmup: updates in which r grows to 1.
        c: bounds the normalised g.

    Raises:
        ValueError: for numbers out of range; on a call, for a process of discrete levels or an unsuitable teacher.
    """

    REFUSES: ClassVar = {
        "model.levels": "needs a process with continuous times: use model=consistency, or model=score_sde with sde=vp",
        "model.process.levels": "needs a process with continuous times: use model=consistency, or sde=ve, vp or subvp",
        "model.SINGLE_LEVEL": "compares noise levels, and this model has only one: use model=consistency",
        "model.PREDICTS_LABELS": "trains a denoiser, not a classifier: use model=consistency",
        "trainer.strategy.SHARDED": "needs forward-mode derivatives, which trainer=fsdp cannot: use trainer=default",
    }

    @checked
    def __init__(
        self, time_law: TimeLaw | None = None, teacher: Any = None, warmup: Count = 10_000, c: Positive = 0.1
    ) -> None:
        super().__init__(time_law)
        self.teacher = None if teacher is None else FrozenDenoiser.of(teacher)
        self.warmup, self.c, self.updates = warmup, c, 0
        self.weight = LossWeight()

    def check(self, denoiser: Denoiser, shape: Any = None) -> None:
        """Raise ValueError for a process of discrete levels, or a teacher of other data."""
        if denoiser.process.levels is not None:
            raise ValueError(f"{type(self).__name__} {self.REFUSES['model.levels']}")
        if self.teacher is not None:
            self.teacher.check(denoiser, shape)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        process = denoiser.process
        if process.levels is not None:
            self.check(denoiser)
        x, before = process.perturb(x0, t, eps), noise.states(x0.device)
        if not self.training:
            return self.tangent(denoiser, x, t, eps, 1.0)[0].square().flatten(1).mean(1)
        f = denoiser(x, t).x0
        noise.restore(before, x0.device)  # the same dropout masks
        g, unit = self.tangent(denoiser, x, t, eps, min(1.0, self.updates / self.warmup))
        g = g / (broadcast(g.flatten(1).norm(dim=1), g) + self.c)
        losses = ((f - f.detach()) / unit + g).square().flatten(1).mean(1)
        w = self.weight(process.log_snr(t))
        return w.exp() * losses - w

    @torch.no_grad()
    def tangent(self, denoiser: Denoiser, x: Tensor, t: Tensor, eps: Tensor, r: float) -> tuple[Tensor, Tensor]:
        """(g (B, ...), sin(a) sigma_data (B, 1, ...)) at x (B, ...) and t (B,)."""
        process, sigma_data = denoiser.process, denoiser.parameterization.sigma_data or 1.0
        if self.teacher is not None:
            eps = self.teacher(denoiser)(x, t).eps
        time = t.double()
        (alpha, sigma), rates = jvp(process.alpha_sigma, (time,), (torch.ones_like(time),))
        a = (sigma / (alpha * sigma_data)).atan()
        da = a.cos() ** 2 * (rates[1] * alpha - sigma * rates[0]) / (alpha**2 * sigma_data)
        alpha, sigma, d_alpha, d_sigma, cos, sin, da = (
            broadcast(k.to(x.dtype), x) for k in (alpha, sigma, *rates, a.cos(), a.sin(), da)
        )
        y = x / alpha
        dx = d_alpha * (y - sigma / alpha * eps) + d_sigma * eps

        def estimate(x: Tensor, t: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
                return denoiser(x, t).x0

        f, df = jvp(estimate, (x, t), (dx, torch.ones_like(t)))
        unit = sin * sigma_data
        first = cos**2 * (sigma_data / cos * eps - sin * y + (f - cos**2 * y) / sin)
        return first + r * (cos * df / da - first), unit

    def after_update(self, network: nn.Module) -> None:
        """Count an update of the weights."""
        self.updates += 1

    def training_state(self) -> dict[str, Any]:
        """Updates so far, and the digest of the teacher, for a checkpoint."""
        return {"updates": self.updates, **({"teacher": self.teacher.digest} if self.teacher is not None else {})}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises ValueError if the teacher has other weights than there."""
        if self.teacher is not None:
            self.teacher.check_digest(state.get("teacher"))
        self.updates = state.get("updates", 0)
