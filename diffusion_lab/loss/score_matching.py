"""Implicit and sliced score matching: losses that need derivatives of the score model instead of a target.

They match the score of the perturbed data p_t, x = alpha x_0 + sigma eps, as denoising score matching does; with
`SingleLevel` and a small sigma this is close to the score of the data.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.time_law import TimeLaw
from diffusion_lab.noise import Generators, draw
from diffusion_lab.ranges import SECOND_DERIVATIVES, Count, Finite, checked

Probe = Literal["rademacher", "gaussian"]


class ImplicitScoreMatching(OneTimeLoss):
    """sigma^power [tr(grad s(x)) + |s(x)|^2 / 2] per image (Hyvärinen 2005, Theorem 1), for x ~ p_t.

    Its expectation equals that of |s - grad log p_t|^2 / 2 up to a constant.  The trace is exact and costs one
    vector-Jacobian product per dimension of x, which suits points and very small images.

    Args:
        sigma_power: weight of a noise level; 2 balances the levels (Song & Ermon 2019, Section 4.2), 0 is the
            unweighted loss of the paper.
        time_law: law of the training times; None: uniform.
    """

    REFUSES: ClassVar = SECOND_DERIVATIVES

    @checked
    def __init__(self, sigma_power: Finite = 2.0, time_law: TimeLaw | None = None) -> None:
        super().__init__(time_law)
        self.sigma_power = sigma_power

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,) and noise eps (B, ...)."""
        dimensions = x0[0].numel()
        basis = torch.eye(dimensions, device=x0.device, dtype=x0.dtype).reshape(dimensions, 1, *x0.shape[1:])
        score, curvature = _derivatives(denoiser, x0, t, eps, basis.expand(-1, *x0.shape))
        return _weight(denoiser, t, self.sigma_power, score) * (curvature.sum(0) + _half_square(score))


class SlicedScoreMatching(OneTimeLoss):
    """sigma^power [v^T grad s(x) v + (v^T s(x))^2 / 2] per image, averaged over random v with E[v v^T] = I.

    Its expectation over v is the implicit loss, at the cost of one vector-Jacobian product per v (Song et al. 2019,
    arXiv:1905.07088, Section 3).  `reduce_variance` replaces the second term by its expectation |s(x)|^2 / 2 ("SSM-VR"
    in the paper; with Gaussian v the sliced loss of NCSN's official code).

    Args:
        projections: number of vectors v per image.
        probe: distribution of v; "rademacher" (v_i = +1 or -1) has the lower variance.
        sigma_power, time_law: as in `ImplicitScoreMatching`.

    Raises:
        ValueError: for projections < 1 or an unknown probe.
    """

    REFUSES: ClassVar = SECOND_DERIVATIVES

    @checked
    def __init__(
        self,
        projections: Count = 1,
        reduce_variance: bool = True,
        probe: Probe = "rademacher",
        sigma_power: Finite = 2.0,
        time_law: TimeLaw | None = None,
    ) -> None:
        super().__init__(time_law)
        self.projections, self.reduce_variance = projections, reduce_variance
        self.probe, self.sigma_power = probe, sigma_power

    def draws(
        self, denoiser: Denoiser, x0: Tensor, generator: Generators, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The noise eps (B, ...) and the projections v (P, B, ...)."""
        (eps,) = super().draws(denoiser, x0, generator, noise)
        v = draw((len(x0), self.projections, *x0.shape[1:]), generator, x0.dtype, x0.device).transpose(0, 1)
        if self.probe == "rademacher":
            v = torch.where(v < 0, -1.0, 1.0).to(v.dtype)
        return eps, v

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,), noise eps (B, ...) and projections v (P, B, ...)."""
        score, curvature = _derivatives(denoiser, x0, t, eps, v)
        if self.reduce_variance:
            half_square = _half_square(score)
        else:
            half_square = 0.5 * (v * score).flatten(2).sum(2).square().mean(0)
        return _weight(denoiser, t, self.sigma_power, score) * (curvature.mean(0) + half_square)


def _derivatives(denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The score s (B, ...) at the perturbed x, and v^T grad s v (P, B) for v (P, B, ...)."""
    training = torch.is_grad_enabled()
    # Validation disables autograd (Lightning by inference mode), but this loss needs it.
    # The fused attention kernels have no second derivative.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = denoiser.process.perturb(x0, t, eps).detach().requires_grad_()
        score = denoiser(x, t.clone()).score
        products = (torch.autograd.grad(score, x, u, retain_graph=True, create_graph=training)[0] for u in v)
        curvature = torch.stack([(u * product).flatten(1).sum(1) for u, product in zip(v, products, strict=True)])
    return score, curvature


def _half_square(score: Tensor) -> Tensor:
    return 0.5 * score.square().flatten(1).sum(1)


def _weight(denoiser: Denoiser, t: Tensor, power: float, like: Tensor) -> Tensor:
    return denoiser.process.sigma(t).to(like.dtype) ** power
