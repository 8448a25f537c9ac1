"""An energy-based model: a network whose output is minus the gradient of a scalar energy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lab.ranges import SECOND_DERIVATIVES


class Energy(nn.Module):
    """-grad_x E(x, t) of the energy E = |x - f(x, t)|^2 / 2, for any network f that keeps the shape of x.

    -grad_x E = (grad_x f)^T (x - f) - (x - f),   p(x) ~ exp(-E) if the output is the score

    The output of a network in general is not a gradient field; here it is, so the model has a density up to its
    normalising constant.  With this structure it performs as well as a score network (Salimans & Ho 2021, "Should
    EBMs model the energy or the score?").  With output="scaled_score", E stands for -sigma log p.

    The output is differentiable if autograd is on, as training and the second derivatives of score matching need; it
    can also be computed with autograd off.  It costs a backward pass through f.  f must be smooth: the second
    derivative of ReLU is zero.

    Args:
        network: f, (x, t) -> tensor of the shape of x.
    """

    REFUSES: ClassVar = SECOND_DERIVATIVES

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def energy(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """E(x, t) of x (B, ...) and t (B,), shape (B,); defined up to a constant."""
        return 0.5 * (x - self.network(x, t, **condition)).square().flatten(1).sum(1)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        # Sampling disables autograd, but -grad E needs it; the fused attention kernels have no second derivative.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x if training and x.requires_grad else x.clone().detach().requires_grad_()
            energy = self.energy(x, t.clone(), **{key: value.clone() for key, value in condition.items()})
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=training)
        return -gradient
