"""3x3 convolution on a CPU by Winograd's algorithm, with 4 times fewer multiplications than its definition.

Four neighbouring outputs of a filter g (3,) on data d (6,) are y = A ((G g) * (D d)): 6 multiplications instead of 12.
Applied along rows and columns, a tile of 4x4 outputs takes 36 instead of 144 (Lavin & Gray 2016, "Fast algorithms for
convolutional neural networks", F(4x4, 3x3)). Summed over channels these are 36 matrix products:

    y = A [ sum_c (G w_c G^T) * (D x_c D^T) ] A^T      for every tile x_c (6, 6) of the input and filter w_c (3, 3).

A, D and G evaluate and interpolate polynomials (Cook & Toom) at `POINTS` and infinity. With these points the error in
float32 is 1e-6 of the outputs' standard deviation (256 channels), against 8e-7 for torch's direct sum in channels_last
and 2.3e-6 with Lavin & Gray's points 0, +-1, +-2.

Images are in channels_last, (B, H, W, C); tiles are (P, 6, 6, T, C), filters (P, 6, 6, K, C), see `tiles.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.network.tiles import (
    OUTPUTS,
    TILE,
    Parts,
    along_columns,
    along_rows,
    copied,
    disjoint,
    overlapping,
    transform,
    work,
)

POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
CHANNELS, PIXELS = 128, 1024
"""From this width and number of pixels in a batch on it is faster, see `python -m diffusion_lab.bench convolution`.

For fewer pixels the transformation of the weights takes too long.
"""


@cache
def matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A (4, 6), D (6, 6) and G (6, 3) with (A ((G g) * (D d)))_i = sum_j g_j d_(i+j)."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    infinity = torch.eye(TILE, dtype=torch.float64)[-1:]
    powers = torch.linalg.vander(points, N=TILE)
    scales = torch.stack([(p - points[points != p]).prod() for p in points])
    # Rows of D: the coefficients of prod_(q != p) (x - q) for each point p, and of the product over all of them.
    rows = [coefficients(points[points != p]) for p in points] + [coefficients(points)]
    a = torch.cat([powers[:, :OUTPUTS], infinity[:, -OUTPUTS:]]).T
    g = torch.cat([powers[:, :3] / scales[:, None], infinity[:, -3:]])
    return a.to(dtype), torch.stack(rows).to(dtype), g.to(dtype)


def coefficients(roots: Tensor) -> Tensor:
    """Coefficients (6,) of the polynomial with these roots, from the constant upwards."""
    product = torch.eye(TILE, dtype=roots.dtype)[0]
    for root in roots:
        product = product.roll(1) - root * product
    return product


def convolve(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """The convolution of x (B, C, H, W) with weight (K, C, 3, 3); or its transpose, of x (B, K, H, W)."""
    a, d, g = matrices(x.dtype)
    pixels = x.permute(0, 2, 3, 1)
    parts = Parts.of(pixels)
    filters = weight.permute(2, 3, 0, 1).contiguous().expand(parts.count, -1, -1, -1, -1)
    filters = transform(g.flip(1) if transposed else g, filters, "filters", "filters").flatten(0, 2)
    filters = filters if transposed else filters.transpose(1, 2)
    shape = (len(x), filters.shape[-1], *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    outputs = y.permute(0, 2, 3, 1)
    for images, rows in parts.chunks(pixels):
        tiles = transform(d, overlapping(pixels[images], rows, parts), "tiles", "tiles").flatten(0, 2)
        products = work("products", x.dtype, len(tiles), tiles.shape[1], filters.shape[-1])
        torch.bmm(tiles, filters, out=products)
        target = disjoint(outputs[images, rows], parts)
        result = transform(a, products.unflatten(0, (-1, TILE, TILE)), "outputs", "outputs")
        target.copy_(result.view(target.shape))
    return y


def correlate(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient (K, C, 3, 3) of the weight, for inputs x (B, C, H, W) and the gradient (B, K, H, W) of the outputs."""
    a, d, g = matrices(x.dtype)
    pixels, outputs = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    parts = Parts.of(pixels)
    totals = work("filters", x.dtype, parts.count * TILE**2, gradient.shape[1], x.shape[1])
    for index, (images, rows) in enumerate(parts.chunks(pixels)):
        tiles = transform(d, overlapping(pixels[images], rows, parts), "tiles", "tiles").flatten(0, 2)
        outer = copied(disjoint(outputs[images, rows], parts), "outputs")
        outer = transform(a.T, outer, "outputs", "products").flatten(0, 2)
        totals.baddbmm_(outer.transpose(1, 2), tiles, beta=min(index, 1))
    # The parts are summed by the transformation: [G^T ... G^T] applied to all their rows.
    half = along_rows(g.T.repeat(1, parts.count), totals.unflatten(0, (1, -1, TILE)), "filters by rows")
    sums = along_columns(g.T, half, "sums")[0]
    return sums.permute(2, 3, 0, 1).clone(memory_format=torch.channels_last)


class Bilinear(torch.autograd.Function):
    """A function of two tensors, each slice in turn under `torch.vmap`."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        slices = [[x] * info.batch_size if d is None else x.unbind(d) for x, d in zip(inputs, in_dims, strict=True)]
        return torch.stack([cls.apply(*one) for one in zip(*slices, strict=True)]), 0


class Convolution(Bilinear):
    """`convolve`, with its derivatives of every order: the gradient of a convolution is the transposed one."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        return convolve(x, weight, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        x, weight, ctx.transposed = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        pair = (gradient, x) if ctx.transposed else (x, gradient)
        return (
            Convolution.apply(gradient, weight, not ctx.transposed) if of_x else None,
            Correlation.apply(*pair) if of_weight else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        terms = []
        if x_tangent is not None:
            terms.append(Convolution.apply(x_tangent, weight, ctx.transposed))
        if weight_tangent is not None:
            terms.append(Convolution.apply(x, weight_tangent, ctx.transposed))
        return sum(terms[1:], terms[0])


class Correlation(Bilinear):
    """`correlate`, with its derivatives."""

    @staticmethod
    def forward(x: Tensor, gradient: Tensor) -> Tensor:
        return correlate(x, gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, Tensor]:
        x, gradient = ctx.saved_tensors
        return Convolution.apply(gradient, direction, True), Convolution.apply(x, direction, False)


def pays(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether the algorithm is faster than the direct sum: in float32 on a CPU, for wide layers and many pixels."""
    batch, _, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= CHANNELS
        and batch * height * width >= PIXELS
        and height % (OUTPUTS * dilation) == width % (OUTPUTS * dilation) == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def lattices(x: Tensor, dilation: int) -> Tensor:
    """Images (B, C, H, W) as their d^2 sublattices of every d-th pixel, (B d^2, C, H/d, W/d).

    A convolution dilated by d is an ordinary one on each of them.
    """
    split = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))
    return split.permute(0, 3, 5, 2, 4, 1).flatten(0, 2).permute(0, 3, 1, 2)


def merged(x: Tensor, dilation: int) -> Tensor:
    """The inverse of `lattices`."""
    split = x.permute(0, 2, 3, 1).unflatten(0, (-1, dilation, dilation))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """Convolution of x (B, C, H, W) with weight (K, C, 3, 3) and a border of zeros: (B, K, H, W)."""
    if not pays(x, weight, dilation):
        return F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    if dilation == 1:
        y = Convolution.apply(x, weight, False)
    else:
        y = merged(Convolution.apply(lattices(x, dilation), weight, False), dilation)
    return y if bias is None else y.add_(bias[:, None, None])
