"""The network for points: a residual MLP."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from diffusion_lab.network.embedding import TimeEmbedding
from diffusion_lab.network.layers import linear
from diffusion_lab.ranges import Count, checked


class MLP(nn.Module):
    """Residual MLP: points x (B, dimensions) and c_noise t (B,) -> (B, dimensions).

    h_0 = W_0 x,   h_i = h_{i-1} + silu((1 + a_i) W_i h_{i-1} + b_i),   y = W h_depth,   [a, b] = V e(t)

    t scales and shifts every layer (FiLM: Perez et al. 2018). e is the `TimeEmbedding` of the U-Net with `embedding`
    dimensions; its frequencies, 1 ... 1e-4, distinguish all of the levels 0 ... 999.
    V and W are initialised almost to zero. With `classes` the network is also conditioned on labels (B,),
    0 ... classes - 1, and `classes` for the null label; with `learned_range` it returns (B, 2 dimensions), of which the
    second half is a learned range of variances (`Parameterization`); with `outputs` it returns the logits (B, outputs)
    of a classifier.
    Raises ValueError for an input of another shape, or a size below 1.
    """

    @checked
    def __init__(
        self,
        dimensions: Count = 2,
        width: Count = 128,
        depth: Count = 3,
        embedding: Annotated[int, Ge(4), MultipleOf(2)] = 64,
        classes: Count | None = None,
        learned_range: bool = False,
        outputs: Count | None = None,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.time = TimeEmbedding(embedding, embedding, classes=classes)
        self.linear_in = linear(dimensions, width)
        self.hidden = nn.ModuleList(linear(width, width) for _ in range(depth))
        self.modulation = linear(embedding, 2 * depth * width, scale=0.0)
        self.linear_out = linear(width, (outputs or dimensions) * (2 if learned_range else 1), scale=0.0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.dimensions:
            raise ValueError(f"input of shape {tuple(x.shape)}: the network needs (batch, {self.dimensions})")
        h = self.linear_in(x)
        scales, shifts = self.modulation(self.time(t, label)).unflatten(1, (2, len(self.hidden), -1)).unbind(1)
        for layer, scale, shift in zip(self.hidden, scales.unbind(1), shifts.unbind(1), strict=True):
            h = h + F.silu(layer(h) * (1 + scale) + shift)
        return self.linear_out(h)
