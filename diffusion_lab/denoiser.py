"""The denoiser: a network, the process whose noise it removes, and the meaning of its output."""

from __future__ import annotations

import copy
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


@dataclass(frozen=True)
class Reading:
    """How a denoiser reads its network at one time: all that is the same for every x, computed once.

        seen = scale x + offset,   x_0 = x0[0] x + x0[1] output,   score = score[0] x + score[1] output

    `told` (B,) is what the network is conditioned on and `dtype` the precision of what it sees, None if that of x.  The
    numbers are scalars like x (one of Python would be wrapped anew by every operation); scale and offset are None where
    the network sees x itself, and score[0] where it is 0.
    """

    t: float
    told: Tensor
    dtype: torch.dtype | None
    scale: Tensor | None
    offset: Tensor | None
    x0: tuple[Tensor, Tensor]
    score: tuple[Tensor | None, Tensor]


class Denoiser(nn.Module):
    """Reads a network as an estimate of the noise; the only caller of the network.

    Losses call it as a module; samplers and the probability flow, which know all their times beforehand, by `read`.
    A condition is bound by `given`: whatever takes a denoiser takes a bound one, and knows nothing of the condition.

    Args:
        network: any callable (x, conditioning (B,), **condition) -> tensor of the shape of x, which writes to neither.
        process: the noise process.
        parameterization: meaning of the output and of the conditioning.

    `nfe` counts the calls of the network since it was last set to 0.  `classes` is the number of classes whose labels
    the network takes (None: it takes none), and `null` the label that stands for none of them, if it has learned one.
    """

    guided = False

    def __init__(
        self, network: Callable[..., Tensor], process: NoiseProcess, parameterization: Parameterization
    ) -> None:
        super().__init__()
        self.network, self.process, self.parameterization = network, process, parameterization
        self.classes: int | None = None
        self.null: int | None = None
        self.condition: dict[str, Tensor] = {}
        self.calls = [0]  # shared with the bound ones

    @property
    def nfe(self) -> int:
        """Calls of the network since it was last set to 0, those of bound denoisers included."""
        return self.calls[0]

    @nfe.setter
    def nfe(self, count: int) -> None:
        self.calls[0] = count

    def given(self, **condition: Tensor) -> Denoiser:
        """This denoiser with a condition, such as label=y (B,), in place of any that it had; all else is shared.

        Without a condition a network that has learned to do without a label estimates the marginal score.
        """
        bound = copy.copy(self)
        with torch.inference_mode(False):  # what is made in it cannot be part of a derivative later
            bound.condition = {key: value.clone() for key, value in condition.items()}
        return bound

    def with_network(self, network: Callable[..., Tensor]) -> Denoiser:
        """A denoiser that asks another network as this one asks its own."""
        return Denoiser(network, self.process, self.parameterization)

    def condition_of(self, x: Tensor) -> dict[str, Tensor]:
        """What the network is given beside x (B, ...) and the noise level."""
        if self.condition or self.null is None:
            return self.condition
        return {"label": torch.full((len(x),), self.null, device=x.device)}

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Estimate:
        """The estimate at x (B, ...) and t, (B,) or scalar; `condition` is as in `given`, for this call.

        The network runs in its own precision; everything around it in the precision of x.
        """
        row = self.parameterization
        alpha, sigma = self.process.marginal(t, x)
        seen = row.network_input(x, alpha, sigma).to(self.network_dtype or x.dtype)
        self.nfe += 1
        # Contiguous: a compiled network would be translated once more for a stride of its own.
        told = self.told(t, x).expand(len(x)).contiguous()
        output = self.network(seen, told, **(condition or self.condition_of(x)))
        return Estimate(x, alpha, sigma, row.eps(output.to(x.dtype), x, alpha, sigma))

    def views(self, times: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """((p, q), (u, w)) of x_0 = p x + q output and score = u x + w output at `times` (S,); each (S,), float64."""
        t = times.double()
        (alpha, sigma), one, zero = self.process.scales(t), torch.ones_like(t), torch.zeros_like(t)
        # An estimate is linear in x and the output, so its values at (1, 0) and (0, 1) say all of it.
        by_x, by_output = (
            Estimate(x, alpha, sigma, self.parameterization.eps(output, x, alpha, sigma))
            for x, output in ((one, zero), (zero, one))
        )
        return (by_x.x0, by_output.x0), (by_x.score, by_output.score)

    def readings(self, times: Tensor, like: Tensor) -> list[Reading]:
        """How to `read` arrays like `like` (B, ...) at each of `times` (S,); computed in float64."""
        t, count = times.double(), len(times)
        one = torch.ones(count, *(1,) * (like.dim() - 1), dtype=torch.float64)
        at_1, at_0 = (self.parameterization.network_input(x, *self.process.marginal(t, one)) for x in (one, 0 * one))
        scale, offset = at_1 - at_0, at_0  # what is seen is affine in x
        as_it_is = bool((scale == 1).all() and (offset == 0).all())
        seen = [[None] * count if as_it_is else k.flatten().to(like).unbind() for k in (scale, offset)]
        x0, (by_x, by_output) = self.views(t)
        by_x = by_x.to(like).unbind() if (by_x != 0).any() else [None] * count
        x0 = zip(*(k.to(like).unbind() for k in x0), strict=True)
        score = zip(by_x, by_output.to(like).unbind(), strict=True)
        told = self.told(t, like)[:, None].expand(-1, len(like)).contiguous().unbind()
        dtype = None if self.network_dtype in (None, like.dtype) else self.network_dtype
        each = zip(t.tolist(), told, [dtype] * count, *seen, x0, score, strict=True)
        return [Reading(*one) for one in each]

    def read(self, x: Tensor, reading: Reading) -> Tensor:
        """The network's output at x (B, ...), as `forward` calls it at the time of the reading."""
        seen = x if reading.scale is None else (x * reading.scale).add_(reading.offset)
        if reading.dtype is not None:
            seen = seen.to(reading.dtype)
        self.calls[0] += 1
        return self.network(seen, reading.told, **(self.condition if self.null is None else self.condition_of(x)))

    def reader(self, reading: Reading) -> Callable[[Tensor], Tensor]:
        """`read` at the time of the reading, with the network and the condition of now looked up once."""
        if (reading.scale, reading.dtype, self.null) != (None, None, None) or type(self).read is not Denoiser.read:
            return lambda x: self.read(x, reading)
        network, told, condition, calls = self.network, reading.told, self.condition, self.calls

        def read(x: Tensor) -> Tensor:
            calls[0] += 1
            return network(x, told, **condition)

        return read

    def told(self, t: Tensor, like: Tensor) -> Tensor:
        """What the network is told at t, of its shape, on the device of `like`."""
        # In the network's precision, but float32 at least: bfloat16 cannot tell level 998 from 999.
        precision = torch.promote_types(self.network_dtype or like.dtype, torch.float32)
        return self.parameterization.conditioning(self.process, t).to(like.device, precision)

    @property
    def network_dtype(self) -> torch.dtype | None:
        """Precision of the parameters that are trained, or the coarsest where all are frozen; None without any."""
        if not isinstance(self.network, nn.Module):
            return None
        # The first will do, and thousands take milliseconds; what is never trained may keep a precision of its own.
        trained = next((p.dtype for p in self.network.parameters() if p.requires_grad), None)
        return trained or min((p.dtype for p in self.network.parameters()), key=lambda d: d.itemsize, default=None)
