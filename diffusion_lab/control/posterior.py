"""Posterior sampling: the gradient of a measurement's likelihood, through the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.control.measurement import Measured
from diffusion_lab.control.operator import LinearOperator
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.gradient import GradientPreconditioning, ShiftedScore
from diffusion_lab.ranges import NonNegative, Positive, checked


class DPS(Measured):
    """Diffusion posterior sampling; Chung et al. 2023 (arXiv:2209.14687), Algorithms 1 and 2.

        x_s <- x_s - scale grad_x |y - A x0_hat(x_t)|

    after every step from t to s; the norm and its gradient are those of each image (the authors' program takes the
    norm of the batch).  Published scales: 0.3 for super-resolution and deblurring, 0.5 for inpainting, with 1,000
    ancestral steps.
    """

    name = "dps"

    @checked
    def __init__(self, operator: LinearOperator | nn.Module, guide: Tensor, scale: Positive = 0.5) -> None:
        super().__init__(operator, guide)
        self.scale = scale

    def step(
        self, step: Callable[..., Any], p: Any, x: Any, t: float, s: float, denoise: Any, noise: Any, past: Any
    ) -> Any:
        made = []

        def watched(x: Tensor, t: float) -> Any:
            made.append(denoise(x, t))
            return made[-1]

        with torch.enable_grad():
            start = x.detach().requires_grad_()
            x_s = step(p, start, t, s, watched, noise, past)
            residual = (self.guide - self.operator(made[0].x0)).flatten(1)
            (gradient,) = torch.autograd.grad(torch.linalg.vector_norm(residual, dim=1).sum(), start)
        for prediction in made:  # later steps need its values only
            prediction.x, prediction.output = prediction.x.detach(), prediction.output.detach()
        return x_s.detach() - self.scale * gradient


class PiGDM(Measured):
    """Pseudoinverse-guided diffusion; Song et al. 2023 (Pseudoinverse-Guided Diffusion Models, ICLR), Eqs. 5 to 7.

        score(x | y) = score(x) + (d x0_hat / d x)^T A^T (r^2 A A^T + noise^2 I)^(-1) (y - A x0_hat)

    with p(x_0 | x_t) taken as N(x0_hat, r^2 I), r^2 = data_std^2 sigma^2 / (data_std^2 alpha^2 + sigma^2): exact for
    Gaussian data N(0, data_std^2 I).

    Args:
        data_std: standard deviation of the data in the model's range; 1 in the paper.
    """

    name = "pigdm"

    @checked
    def __init__(
        self, operator: LinearOperator | nn.Module, guide: Tensor, noise: NonNegative = 0.0, data_std: Positive = 1.0
    ) -> None:
        super().__init__(operator, guide, noise)
        self.data_std = data_std

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return PiGuided(denoiser, self)


class PiGuided(ShiftedScore):
    """A denoiser with the score of `PiGDM`."""

    def __init__(self, denoiser: Denoiser, control: PiGDM) -> None:
        super().__init__(denoiser)
        self.measured = control

    def evaluate(self, x: Tensor, c: GradientPreconditioning) -> tuple[Tensor, Tensor | None, Tensor]:
        m = self.measured
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            output, fraction = self.unshifted.outputs(start, c.unshifted)
            x0 = start * c.c_skip + output * c.c_out
            r2 = (m.data_std * c.sigma) ** 2 / ((m.data_std * c.alpha) ** 2 + c.sigma**2)
            residual = m.operator.solve(m.guide - m.operator(x0.detach()), r2, m.std**2)
            (gradient,) = torch.autograd.grad(x0, start, m.operator.transpose(residual))
        return output.detach(), None if fraction is None else fraction.detach(), gradient
