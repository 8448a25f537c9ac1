"""Instance normalisation that keeps what the plain one throws away: InstanceNorm++, told the noise level or not."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.network.embedding import LabelEmbedding, embedded

EPSILON = 1e-5


class Position(NamedTuple):
    """Where each sample stands on a ladder of levels: (1 - share) of level `below`, share of level `above`; its label.

    What a network is not told is None.
    """

    below: Tensor | None
    above: Tensor | None
    share: Tensor | None
    label: Tensor | None = None

    @classmethod
    def of(cls, t: Tensor, levels: int | None, label: Tensor | None = None) -> Position:
        """Position of real numbers t (B,), clamped to [0, levels - 1]; at a whole number the share is exactly 0."""
        if levels is None:
            return cls(None, None, None, label)
        # bfloat16 cannot count to 300.
        t = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(0, levels - 1)
        below = t.floor()
        return cls(below.long(), t.ceil().long(), (t - below)[:, None], label)


def instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """InstanceNorm++: each channel standardised over its pixels, plus its mean standardised over the channels.

    y_k = gamma_k ((x_k - mu_k) / sqrt(v_k + 1e-5) + alpha_k (mu_k - m) / sqrt(s + 1e-5)) + beta_k

    with mu_k, v_k mean and biased variance of channel k, and m, s mean and unbiased variance of the mu_k (Song & Ermon
    2019, appendix A). A plain instance norm forgets the mu_k, and with them the colours of an image.
    Shapes: x (B, C, H, W), kept; gamma, alpha, beta (C,) or (B, C).
    """
    # Autocast's bfloat16 would lose the mean that is taken off below.
    pixels = x.to(torch.promote_types(x.dtype, gamma.dtype)).flatten(2)
    mean = pixels.mean(2, keepdim=True)
    centred = pixels - mean
    variance = torch.linalg.vecdot(centred, centred)[:, :, None] / pixels.shape[2]
    spread, centre = torch.var_mean(mean, dim=1, keepdim=True)
    gamma, alpha, beta = gamma[..., None], alpha[..., None], beta[..., None]
    shift = gamma * alpha * (mean - centre) * (spread + EPSILON).rsqrt() + beta
    # As long as x is flattened, no step copies it, in whatever memory format it is.
    return torch.addcmul(shift, gamma * (variance + EPSILON).rsqrt(), centred).unflatten(2, x.shape[2:])


class LabelledNorm(nn.Module):
    """`instance_norm_plus` whose gamma, alpha, beta may depend on a label: a row for each label is added to them.

    The rows start as 0 (as in Dumoulin et al. 2017, but beside what the norm has already).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_channels(channels)
        self.channels, self.labels = channels, None

    def tell_labels(self, classes: int) -> None:
        """Make it depend on labels 0 ... classes - 1, and `classes` for none."""
        self.labels = LabelEmbedding(classes, 3 * self.channels, start_at_zero=True)

    def normalised(self, x: Tensor, rows: Tensor, position: Position | None) -> Tensor:
        """x (B, channels, H, W) normalised by [gamma, alpha, beta], (3 channels,) or (B, 3 channels)."""
        of_label = embedded(self.labels, position and position.label)
        return instance_norm_plus(x, *(rows if of_label is None else rows + of_label).chunk(3, dim=-1))


class InstanceNormPlus(LabelledNorm):
    """`instance_norm_plus` with one gamma, alpha, beta a channel; gamma, alpha start as N(1, 0.02^2), beta as 0.

    Shape: (B, channels, H, W), kept. Raises ValueError for less than two channels, whose variance does not exist.
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
    """`instance_norm_plus` with a gamma, alpha, beta a channel and level, which start as above.

    Between two levels all three are interpolated linearly. `table` (levels, 3 channels) holds them side by side.
    Shape: (B, channels, H, W), kept. Raises ValueError as above.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(channels)
        gains = 1 + 0.02 * torch.randn(levels, 2 * channels)
        self.table = nn.Parameter(torch.cat([gains, torch.zeros(levels, channels)], dim=1))

    def forward(self, x: Tensor, position: Position) -> Tensor:
        below, above = F.embedding(position.below, self.table), F.embedding(position.above, self.table)
        rows = torch.lerp(below, above, position.share.to(self.table.dtype))
        return self.normalised(x, rows, position)


class NoNorm(nn.Module):
    """No normalisation, in a place where other networks have one."""

    def forward(self, x: Tensor, position: Position | None = None) -> Tensor:
        return x


def check_channels(channels: int) -> None:
    """Raise ValueError where there are no two channels to compare."""
    if channels < 2:
        raise ValueError(f"InstanceNorm++ over channels={channels}: it compares channels, give at least 2")
