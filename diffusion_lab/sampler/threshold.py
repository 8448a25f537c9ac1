"""Static and dynamic thresholding of predictions of x_0."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Threshold = Callable[[Tensor], Tensor]
"""x_0 -> x_0; it may write to what it is given."""


def chosen(bounds: tuple[float, float] | None, clip: bool, quantile: float | None) -> Threshold | None:
    """The threshold of a sampler for data in a range; None for unbounded data, or no thresholding."""
    if bounds is None or not (clip or quantile):
        return None
    return clipped(*bounds) if clip else dynamic(*bounds, quantile)


def clipped(low: float, high: float) -> Threshold:
    """x_0 clipped to [low, high] (Ho et al. 2020)."""
    return lambda x0: x0.clamp_(low, high)


def dynamic(low: float, high: float, quantile: float) -> Threshold:
    """Dynamic thresholding; Saharia et al. 2022 (Imagen, arXiv:2205.11487), Section 2.3.

    On the scale where the range is [-1, 1], with s = max(1, that quantile of |x_0|) of each image:
    x_0 <- clip(x_0, -s, s) / s.
    """
    centre, half = (low + high) / 2, (high - low) / 2

    def threshold(x0: Tensor) -> Tensor:
        scaled = (x0 - centre) / half
        s = scaled.flatten(1).abs().quantile(quantile, dim=1).clamp(min=1).reshape(-1, *(1,) * (x0.dim() - 1))
        return centre + half * (scaled.clamp(-s, s) / s)

    return threshold
