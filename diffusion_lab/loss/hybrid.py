"""The losses of IDDPM: L_simple, L_hybrid and L_vlb with a learned range of variances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood.terms import decoder_nll, step_kl
from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.time_law import TimeLaw
from diffusion_lab.process import DiscreteProcess, Variance
from diffusion_lab.ranges import Levels, NonNegative, checked


class HybridLoss(OneTimeLoss):
    """L_hybrid = simple_weight L_simple + vlb_weight L_vlb; Nichol & Dhariwal 2021, Eq. 16.

    L_simple is the mean of |eps_hat - eps|^2 over the dimensions, and L_vlb the variational bound in bits/dim,
    estimated by T times its term at one level.  With `detach_mean` L_vlb trains the variances only.  L_vlb alone, as
    published for likelihood, is simple_weight=0, vlb_weight=1, detach_mean=false, and the law `LossSecondMoment`.

    Args:
        time_law: law of the training times; None: uniform.
        grey_levels: number of grey levels of images; None for data without.

    Raises:
        ValueError: for negative weights or two zeros; on a call, for a process without levels, or a network that learns
            no variance where variance="learned_range".
    """

    @checked
    def __init__(
        self,
        simple_weight: NonNegative = 1.0,
        vlb_weight: NonNegative = 0.001,
        detach_mean: bool = True,
        variance: Variance = "learned_range",
        time_law: TimeLaw | None = None,
        grey_levels: Levels | None = 256,
    ) -> None:
        super().__init__(time_law)
        if simple_weight + vlb_weight == 0:
            raise ValueError("simple_weight and vlb_weight must not both be 0")
        self.simple_weight, self.vlb_weight, self.detach_mean = simple_weight, vlb_weight, detach_mean
        self.variance, self.grey_levels = variance, grey_levels

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,) and noise eps (B, ...)."""
        process = denoiser.process
        if not isinstance(process, DiscreteProcess):
            raise ValueError("the hybrid loss needs a model with discrete noise levels, such as model=iddpm")
        estimate = denoiser(process.perturb(x0, t, eps), t)
        loss = self.simple_weight * (estimate.eps - eps).square().flatten(1).mean(1)
        if not self.vlb_weight:
            return loss
        mean = estimate.x0.detach() if self.detach_mean else estimate.x0
        level, row = process.level(t).double().round(), denoiser.parameterization
        later = level.clamp(min=2) / process.levels  # the first level has the decoder's term
        divergence = step_kl(process, later, x0, mean, self.variance, estimate.fraction)
        at_first = (level == 1).to(x0.device)
        chosen = at_first.reshape(-1, *(1,) * (x0.dim() - 1))
        # At other levels the decoder's term is taken where it has finite gradients, and then left out.
        mean = torch.where(chosen, mean, x0)
        fraction = None if estimate.fraction is None else torch.where(chosen, estimate.fraction, 0.0)
        ends = row.low, row.high
        first = decoder_nll(process, x0, mean, self.variance, fraction, ends, self.grey_levels)
        nats = torch.where(at_first, first, divergence)
        return loss + self.vlb_weight * process.levels / (x0[0].numel() * math.log(2)) * nats
