"""Group normalisation followed by silu; its gradient keeps the input alone, and no array between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp

SMALL = 2**19
"""Elements of the smallest array whose memory is saved; for fewer, calling a gradient in Python takes too long."""


class GroupNormSilu(nn.GroupNorm):
    """silu(GN(x)), silu(a) = a / (1 + e^-a): Wu & He 2018, "Group normalization", eq. 1; Ho et al. 2020, appendix B.

    Equal to `nn.GroupNorm` and `F.silu` in turn, with the parameters of the former. For large x the gradient computes
    GN(x) a second time, so that training need not keep it. Shape: (B, channels, ...), kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.silu(super().forward(x), inplace=True)
        if torch.compiler.is_compiling() or x.numel() < SMALL:
            return F.silu(super().forward(x))
        # On a GPU autocast normalises in float32; what is kept has the precision of x.
        wide = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
        dtype = torch.float32 if wide else x.dtype
        return NormSilu.apply(x, self.weight, self.bias, self.num_groups, self.eps, dtype)


class NormSilu(torch.autograd.Function):
    """The function of `GroupNormSilu`, with derivatives of every order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype) -> Tensor:
        return F.silu(F.group_norm(x.to(dtype), groups, weight, bias, eps), inplace=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        *tensors, ctx.groups, ctx.eps, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient is differentiated, too
            settings = ctx.groups, ctx.eps, ctx.dtype
            _, pullback = vjp(lambda *tensors: NormSilu.forward(*tensors, *settings), x, weight, bias)
            return *pullback(gradient), None, None, None
        sizes = len(x), x.shape[1], x.numel() // (len(x) * x.shape[1]), ctx.groups
        wide = dense(x.to(ctx.dtype))
        normed, mean, scale = torch.native_group_norm(wide, weight, bias, *sizes, ctx.eps)
        of_norm = torch.ops.aten.silu_backward.grad_input(gradient, normed, grad_input=normed)
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            of_norm, wide, mean, scale, weight, *sizes, ctx.needs_input_grad[:3]
        )
        return (None if of_x is None else of_x.to(x.dtype)), of_weight, of_bias, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        primals = ctx.saved_tensors
        tangents = (torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents[:3], strict=True))
        (x, *affine), (of_x, *of_affine) = primals, tangents
        weight, bias, of_weight, of_bias = (t.view(-1, *[1] * (x.dim() - 2)) for t in (*affine, *of_affine))
        x, of_x = (t.to(ctx.dtype).unflatten(1, (ctx.groups, -1)) for t in (x, of_x))
        each = {"dim": tuple(range(2, x.dim())), "keepdim": True}  # over the channels of a group and the pixels
        # n = (x - m) / s and dn = (dx - mean(dx) - n mean(n dx)) / s; d silu(a) = g (1 + a (1 - g)) da, g = sigmoid(a).
        variance, mean = torch.var_mean(x, correction=0, **each)
        scale = (variance + ctx.eps).rsqrt()
        n = (x - mean) * scale
        of_n = (of_x - of_x.mean(**each) - n * (n * of_x).mean(**each)) * scale
        n, of_n = n.flatten(1, 2), of_n.flatten(1, 2)
        a = weight * n + bias
        gate = a.sigmoid()
        return (weight * of_n + of_weight * n + of_bias) * gate * (1 + a * (1 - gate))


def dense(x: Tensor) -> Tensor:
    """x in the layout in which torch normalises it: channels_last if it is, but for a GPU."""
    last = x.device.type == "cpu" and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
