"""A small network for points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.embedding import TimeEmbedding
from diffusion_lab.network.layers import linear


class HiddenBlock(nn.Module):
    """h + W_2 silu(W_1 silu(h) + shift(e)): a residual block without space, e from `TimeEmbedding`."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.dense1 = linear(width, width)
        self.shift = linear(embedding, width)
        self.dense2 = linear(width, width, scale=0.0)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return h + self.dense2(F.silu(self.dense1(F.silu(h)) + self.shift(embedding)))


class MLP(nn.Module):
    """Residual perceptron for points, conditioned like the U-Net: x (B, dimensions) and t (B,) -> (B, dimensions).

    t may be any number up to a few thousand: the fastest wave of the embedding turns by one radian per unit (so that
    neighbours among the levels 0 ... 999 differ), the slowest by 1e-4.
    """

    def __init__(self, dimensions: int = 2, width: int = 128, depth: int = 3, embedding: int = 64) -> None:
        super().__init__()
        self.time = TimeEmbedding(embedding, width)
        self.enter = linear(dimensions, width)
        self.hidden = nn.ModuleList(HiddenBlock(width, width) for _ in range(depth))
        self.leave = linear(width, dimensions, scale=0.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, embedding = self.enter(x), self.time(t)
        for block in self.hidden:
            h = block(h, embedding)
        return self.leave(F.silu(h))
