"""The denoiser: a network, the process whose noise it removes, and the meaning of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


@dataclass(frozen=True)
class Estimate:
    """One guess of how x = alpha x_0 + sigma eps came about, seen four ways; all of the shape of x."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    eps: Tensor

    @property
    def x0(self) -> Tensor:
        """The clean image E[x_0 | x] = (x - sigma eps) / alpha (Tweedie's formula)."""
        return (self.x - self.sigma * self.eps) / self.alpha

    @property
    def score(self) -> Tensor:
        """grad log p_t(x) = -eps / sigma."""
        return -self.eps / self.sigma

    @property
    def v(self) -> Tensor:
        """v = alpha eps - sigma x_0 (Salimans & Ho 2022, Appendix D)."""
        return self.alpha * self.eps - self.sigma * self.x0


class Denoiser(nn.Module):
    """Reads a network as an estimate of the noise; the only caller of the network.

    Args:
        network: any callable (x, conditioning (B,), **condition) -> tensor of the shape of x.
        process: the noise process.
        parameterization: meaning of the output and of the conditioning.

    `nfe` counts the calls of the network since it was last set to 0.
    """

    def __init__(
        self, network: Callable[..., Tensor], process: NoiseProcess, parameterization: Parameterization
    ) -> None:
        super().__init__()
        self.network, self.process, self.parameterization = network, process, parameterization
        self.nfe = 0

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Estimate:
        """The estimate at x (B, ...) and t, (B,) or scalar; `condition` goes to the network as it is.

        The network runs in its own precision; everything around it in the precision of x.
        """
        self.nfe += 1
        row = self.parameterization
        alpha, sigma = self.process.marginal(t, x)
        # What the network is told keeps its precision: bfloat16 cannot tell level 998 from 999.
        told = row.conditioning(self.process, t).to(x.device, torch.promote_types(x.dtype, torch.float32))
        seen = row.network_input(x, alpha, sigma)
        dtype = self.network_dtype or x.dtype
        # Contiguous: a compiled network would be translated once more for a stride of its own.
        output = self.network(seen.to(dtype), told.expand(len(x)).contiguous(), **condition)
        return Estimate(x, alpha, sigma, row.eps(output.to(x.dtype), x, alpha, sigma))

    @property
    def network_dtype(self) -> torch.dtype | None:
        """Precision of the network's parameters, the coarsest if some keep a finer one; None without any."""
        if not isinstance(self.network, nn.Module):
            return None
        return min((p.dtype for p in self.network.parameters()), key=lambda dtype: dtype.itemsize, default=None)
