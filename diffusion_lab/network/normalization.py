"""InstanceNorm++, optionally conditioned on the noise level and the label."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.embedding import LabelEmbedding, embedded

EPSILON = 1e-5


class Position(NamedTuple):
    """Conditioning of each sample: weight (1 - fraction) of level `below`, fraction of level `above`; and its label.

    The fields that a network is not conditioned on are None.
    """

    below: Tensor | None
    above: Tensor | None
    fraction: Tensor | None
    label: Tensor | None = None

    @classmethod
    def of(cls, t: Tensor, levels: int | None, label: Tensor | None = None) -> Position:
        """Position of real-valued levels t (B,), clamped to [0, levels - 1]; for integers the fraction is exactly 0."""
        if levels is None:
            return cls(None, None, None, label)
        # bfloat16 represents integers only up to 256.
        t = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(0, levels - 1)
        below = t.floor()
        return cls(below.long(), t.ceil().long(), (t - below)[:, None], label)


def instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """InstanceNorm++: each channel normalised over its pixels, plus its mean normalised over the channels.

    y_k = gamma_k ((x_k - mu_k) / sqrt(v_k + 1e-5) + alpha_k (mu_k - m) / sqrt(s + 1e-5)) + beta_k

    with mu_k, v_k mean and biased variance of channel k, and m, s mean and unbiased variance of the mu_k (Song & Ermon
    2019, appendix A). Plain instance normalisation removes the mu_k, and with them the colours of an image.
    Shapes: x (B, C, H, W), kept; gamma, alpha, beta (C,) or (B, C).
    """
    # Not in autocast's bfloat16, which is too coarse for subtracting the mean.
    pixels = x.to(torch.promote_types(x.dtype, gamma.dtype)).flatten(2)
    mean = pixels.mean(2, keepdim=True)
    centred = pixels - mean
    variance = torch.linalg.vecdot(centred, centred)[:, :, None] / pixels.shape[2]
    mean_variance, mean_of_means = torch.var_mean(mean, dim=1, keepdim=True)
    gamma, alpha, beta = gamma[..., None], alpha[..., None], beta[..., None]
    shift = gamma * alpha * (mean - mean_of_means) * (mean_variance + EPSILON).rsqrt() + beta
    # On the flattened x no operation copies it, in any memory format.
    return torch.addcmul(shift, gamma * (variance + EPSILON).rsqrt(), centred).unflatten(2, x.shape[2:])


class LabelledNorm(nn.Module):
    """`instance_norm_plus` whose gamma, alpha, beta may depend on a label: an embedding of the label is added to them.

    The embeddings are initialised to 0 (as in Dumoulin et al. 2017, but added to the norm's parameters).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_channels(channels)
        self.channels, self.labels = channels, None

    def add_labels(self, classes: int) -> None:
        """Condition on labels 0 ... classes - 1, and `classes` for the null label."""
        self.labels = LabelEmbedding(classes, 3 * self.channels, start_at_zero=True)

    def normalised(self, x: Tensor, rows: Tensor, position: Position | None) -> Tensor:
        """x (B, channels, H, W) normalised by [gamma, alpha, beta], (3 channels,) or (B, 3 channels)."""
        of_label = embedded(self.labels, position and position.label)
        return instance_norm_plus(x, *(rows if of_label is None else rows + of_label).chunk(3, dim=-1))


class InstanceNormPlus(LabelledNorm):
    """`instance_norm_plus` with gamma, alpha, beta per channel; initially gamma, alpha ~ N(1, 0.02^2), beta = 0.

    Shape: (B, channels, H, W), kept. Raises ValueError for less than two channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, position: Position | None = None) -> Tensor:
        if self.labels is None:
            return instance_norm_plus(x, self.gamma, self.alpha, self.beta)
        return self.normalised(x, torch.cat([self.gamma, self.alpha, self.beta]), position)


class ConditionalInstanceNormPlus(LabelledNorm):
    """`instance_norm_plus` with gamma, alpha, beta per channel and level, initialised as in `InstanceNormPlus`.

    Between two levels all three are interpolated linearly. `table` (levels, 3 channels) holds [gamma, alpha, beta].
    Shape: (B, channels, H, W), kept. Raises ValueError as above.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(channels)
        gains = 1 + 0.02 * torch.randn(levels, 2 * channels)
        self.table = nn.Parameter(torch.cat([gains, torch.zeros(levels, channels)], dim=1))

    def forward(self, x: Tensor, position: Position) -> Tensor:
        below, above = F.embedding(position.below, self.table), F.embedding(position.above, self.table)
        rows = torch.lerp(below, above, position.fraction.to(self.table.dtype))
        return self.normalised(x, rows, position)


class NoNorm(nn.Module):
    """The identity, with the signature of the norms."""

    def forward(self, x: Tensor, position: Position | None = None) -> Tensor:
        return x


def check_channels(channels: int) -> None:
    """Raise ValueError for less than two channels."""
    if channels < 2:
        raise ValueError(f"InstanceNorm++ compares channels and needs at least 2, got channels={channels}")
