"""A discriminator of features, for adversarial losses."""

from __future__ import annotations

from torch import Tensor, nn

from diffusion_lab.network.layers import Conv3x3
from diffusion_lab.ranges import Count, checked


class Discriminator(nn.Module):
    """Features (B, C, H, W), or (B, C), to one number per image, (B,): two 3x3 convolutions, and a mean over positions.

    The head of Chadebec et al. 2024 (arXiv:2406.02347), Section 3.3, with group norms and SiLU.

    Args:
        channels: C.
        width: channels after the first convolution; twice as many after the second.
    """

    @checked
    def __init__(self, channels: Count, width: Count = 64) -> None:
        super().__init__()

        def layer(source: int, target: int) -> list[nn.Module]:
            norm = nn.GroupNorm(4 if target % 4 == 0 else 1, target)
            return [Conv3x3(source, target), norm, nn.SiLU()]

        self.layers = nn.Sequential(
            *layer(channels, width), *layer(width, 2 * width), nn.Conv2d(2 * width, 1, 1), nn.Flatten()
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.reshape(*features.shape[:2], *(features.shape[2:] or (1, 1)))).mean(1)
