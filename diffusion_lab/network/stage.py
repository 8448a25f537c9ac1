"""Modules (x, embedding) -> x that a U-Net is composed of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from diffusion_lab.network.blocks import AttentionBlock, ResidualBlock


class Stage(nn.Module):
    """A residual block, optionally followed by attention; recomputed in the backward pass with `checkpoint`."""

    def __init__(self, residual: ResidualBlock, attention: AttentionBlock | None, checkpoint: bool) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        if self.checkpoint and self.training:
            return recompute(self.compute, x, embedding, use_reentrant=False)
        return self.compute(x, embedding)

    def compute(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self.attention(self.residual(x, embedding))


class Unconditional(nn.Sequential):
    """Layers that ignore the embedding, with the signature of `Stage`."""

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return super().forward(x)
