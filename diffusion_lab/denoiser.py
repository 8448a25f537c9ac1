"""The denoiser: a network, its noise process, and the meaning of its output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


@dataclass(frozen=True)
class Estimate:
    """An estimate of eps in x = alpha x_0 + sigma eps, and the same estimate as x_0, score or v; of the shape of x.

    `fraction` is v in the learned variance of a reverse step, log variance = v log fixed_large + (1 - v) log
    fixed_small (Nichol & Dhariwal 2021, Eq. 15), of the shape of x; None if the network does not learn it.
    """

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    eps: Tensor
    fraction: Tensor | None = None

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
class Preconditioning:
    """Preconditioning of the network F at one time, in the notation of Karras et al. 2022 (Eq. 7).

        D(x) = c_skip x + c_out F(c_in x + c_shift, c_noise)

    D is the estimate of x_0.  `c_noise` has shape (B,), `dtype` is the precision of the network's input (None: that of
    x).  The other coefficients are scalar tensors of the dtype of x (Python numbers would be wrapped by every
    operation); c_in and c_shift are None if the network's input is x itself.
    """

    c_noise: Tensor
    dtype: torch.dtype | None
    c_in: Tensor | None
    c_shift: Tensor | None
    c_skip: Tensor
    c_out: Tensor


class Denoiser(nn.Module):
    """A network together with its noise process and the meaning of its output; the only caller of the network.

    Losses call it as a module.  Samplers and the probability flow know all their times in advance: they compute the
    `preconditionings` once and call `network_output`.  `given` binds a condition; losses, samplers and likelihoods take
    a bound denoiser like any other.

    Args:
        network: any callable (x, c_noise (B,), **condition) -> tensor of the shape of x; it must not modify its inputs.
        process: the noise process.
        parameterization: meaning of the output and of the noise conditioning.

    `nfe` counts network evaluations since it was last set to 0.  `classes` is the number of classes of a
    class-conditional network (None: unconditional), and `null` its null label, if it was trained with label dropout.
    """

    guided = False
    control: Any = None
    """A `control.Control` of the states of samplers, or None (`controlled`)."""
    mean_gradient: Callable[[Tensor, float], Tensor | float] | None = None
    """A function of x and t; ancestral steps add variance times it to their mean (`with_mean_gradient`)."""

    def __init__(
        self, network: Callable[..., Tensor], process: NoiseProcess, parameterization: Parameterization
    ) -> None:
        super().__init__()
        self.network, self.process, self.parameterization = network, process, parameterization
        self.classes: int | None = None
        self.null: int | None = None
        self.condition: dict[str, Tensor] = {}
        self.calls = [0]  # shared with bound denoisers

    @property
    def nfe(self) -> int:
        """Network evaluations since it was last set to 0, including those of bound denoisers."""
        return self.calls[0]

    @nfe.setter
    def nfe(self, count: int) -> None:
        self.calls[0] = count

    def given(self, **condition: Tensor) -> Denoiser:
        """Return this denoiser bound to a condition, such as label=y (B,), which replaces any earlier one.

        Everything else is shared.  Without a condition a network trained with label dropout estimates the marginal
        score.

        Raises:
            ValueError: for a condition that is not a tensor, or labels that are not those of a class or the null label.
        """
        for key, value in condition.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{key}={value!r} must be a tensor (B,)")
        if "label" in condition and self.classes is not None:
            check_labels(condition["label"], self.classes if self.null is None else self.classes + 1)
        bound = copy.copy(self)
        with torch.inference_mode(False):  # autograd cannot use tensors created in inference mode
            bound.condition = {key: value.clone() for key, value in condition.items()}
        return bound

    def controlled(self, control: Any) -> Denoiser:
        """Return this denoiser with a control of the states that samplers pass through; everything else is shared."""
        bound = copy.copy(self)
        bound.control = control
        return bound

    def with_mean_gradient(self, gradient: Callable[[Tensor, float], Tensor | float]) -> Denoiser:
        """Return this denoiser with a gradient that shifts the mean of ancestral steps; everything else is shared."""
        bound = copy.copy(self)
        bound.mean_gradient, bound.guided = gradient, True
        return bound

    def with_network(self, network: Callable[..., Tensor]) -> Denoiser:
        """Return a denoiser with the same process, parameterization, condition and control, and another network."""
        other = Denoiser(network, self.process, self.parameterization)
        for name in ("classes", "null", "condition", "control"):
            setattr(other, name, getattr(self, name))
        return other

    def condition_of(self, x: Tensor) -> dict[str, Tensor]:
        """The network's arguments besides x (B, ...) and c_noise."""
        if self.condition or self.null is None:
            return self.condition
        return {"label": torch.full((len(x),), self.null, device=x.device)}

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Estimate:
        """The estimate at x (B, ...) and t, (B,) or scalar; `condition` is as in `given`, for this call only.

        The network runs in its own precision, everything else in the precision of x.
        """
        row = self.parameterization
        output, alpha, sigma = self.network_at(x, t, **(condition or self.condition_of(x)))
        output, fraction = row.split(output)
        return Estimate(x, alpha, sigma, row.eps(output, x, alpha, sigma), fraction)

    def output_shape(self, x: Tensor) -> list[int]:
        """The shape of the network's output for x (B, ...)."""
        batch, channels, *size = x.shape
        return [batch, 2 * channels if self.parameterization.learned_range else channels, *size]

    def network_at(self, x: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the network's output in the precision of x, alpha, sigma) at x (B, ...) and t, (B,) or scalar."""
        alpha, sigma = self.process.marginal(t, x)
        network_input = self.parameterization.network_input(x, alpha, sigma).to(self.network_dtype or x.dtype)
        self.nfe += 1
        # Contiguous: torch.compile would recompile the network for another stride.
        c_noise = self.c_noise(t, x).expand(len(x)).contiguous()
        return self.network(network_input, c_noise, **condition).to(x.dtype), alpha, sigma

    def skip_and_out(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) with x_0 = c_skip x + c_out output at `times` (S,); each (S,), float64."""
        t = times.double()
        (alpha, sigma), one, zero = self.process.alpha_sigma(t), torch.ones_like(t), torch.zeros_like(t)
        # An estimate is linear in x and the output, so its values at (1, 0) and (0, 1) are the coefficients.
        c_skip, c_out = (
            Estimate(x, alpha, sigma, self.parameterization.eps(output, x, alpha, sigma)).x0
            for x, output in ((one, zero), (zero, one))
        )
        return c_skip, c_out

    def preconditionings(self, times: Tensor, like: Tensor) -> list[Preconditioning]:
        """The `Preconditioning` at each of `times` (S,) for x like `like` (B, ...); computed in float64."""
        t = times.double()
        one = torch.ones(len(t), *(1,) * (like.dim() - 1), dtype=torch.float64)
        at_1, at_0 = (self.parameterization.network_input(x, *self.process.marginal(t, one)) for x in (one, 0 * one))
        c_in, c_shift = at_1 - at_0, at_0  # the network's input is affine in x
        unchanged = bool((c_in == 1).all() and (c_shift == 0).all())
        columns = [[None] * len(t) if unchanged else k.flatten().to(like).unbind() for k in (c_in, c_shift)]
        columns += [k.to(like).unbind() for k in self.skip_and_out(t)]
        c_noise = self.c_noise(t, like)[:, None].expand(-1, len(like)).contiguous().unbind()
        dtype = None if self.network_dtype in (None, like.dtype) else self.network_dtype
        return [Preconditioning(noise, dtype, *row) for noise, *row in zip(c_noise, *columns, strict=True)]

    def network_output(self, x: Tensor, preconditioning: Preconditioning) -> Tensor:
        """The network's output F at x (B, ...) and the time of the preconditioning, of the shape of x."""
        return self.outputs(x, preconditioning)[0]

    def outputs(self, x: Tensor, preconditioning: Preconditioning) -> tuple[Tensor, Tensor | None]:
        """`network_output`, and the fraction of a learned range of variances (`Parameterization.split`)."""
        c = preconditioning
        network_input = x if c.c_in is None else (x * c.c_in).add_(c.c_shift)
        if c.dtype is not None:
            network_input = network_input.to(c.dtype)
        self.calls[0] += 1
        condition = self.condition if self.null is None else self.condition_of(x)
        return self.parameterization.split(self.network(network_input, c.c_noise, **condition))

    def output_at(self, preconditioning: Preconditioning) -> Callable[[Tensor], Tensor]:
        """`network_output` at one time, in the precision of x, with network and condition looked up only once."""
        c = preconditioning
        overridden = type(self).outputs is not Denoiser.outputs or self.parameterization.learned_range
        if overridden or (c.c_in, c.dtype, self.null) != (None, None, None):
            return lambda x: self.outputs(x, c)[0].to(x.dtype)
        network, c_noise, condition, calls = self.network, c.c_noise, self.condition, self.calls

        def output(x: Tensor) -> Tensor:
            calls[0] += 1
            output = network(x, c_noise, **condition)
            return output if output.dtype is x.dtype else output.to(x.dtype)

        return output

    def c_noise(self, t: Tensor, like: Tensor) -> Tensor:
        """c_noise at t, of the shape of t, on the device of `like`."""
        # The network's precision, but at least float32: bfloat16 cannot distinguish levels 998 and 999.
        precision = torch.promote_types(self.network_dtype or like.dtype, torch.float32)
        return self.parameterization.conditioning(self.process, t).to(like.device, precision)

    @property
    def network_dtype(self) -> torch.dtype | None:
        """Precision of the trained parameters, or the lowest precision if all are frozen; None without parameters."""
        if not isinstance(self.network, nn.Module):
            return None
        # Checking only the first is enough and saves milliseconds; frozen parameters may have another precision.
        trained = next((p.dtype for p in self.network.parameters() if p.requires_grad), None)
        return trained or min((p.dtype for p in self.network.parameters()), key=lambda d: d.itemsize, default=None)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless labels are integers (B,), or a scalar, from 0 to classes - 1.

    The range is checked on the CPU only, where it needs no synchronisation.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels of type {type(labels).__name__} must be a tensor of integers (B,)")
    if labels.dtype not in (torch.int64, torch.int32) or labels.dim() > 1:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise ValueError(
            f"labels of type {dtype} and shape {tuple(labels.shape)} must be integers (int64) of shape (B,)"
        )
    if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} must lie between 0 and {classes - 1}")
