"""What a feature extractor is, what it is fed, and how its score is called."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Extractor(Protocol):
    """Maps images to the vectors whose means and covariances a Fréchet distance compares.

    A plain object, never an `nn.Module`. `digest` is the sha256 that identifies the weights once `prepare`
    has run: two scores are comparable, and statistics may be cached, only under equal digests. `learned` tells
    whether `prepare` fits to the training images, or needs none.
    """

    name: str
    short: str
    dimensions: int
    digest: str
    learned: bool

    def prepare(self, train_images: Tensor | None, train_labels: Tensor | None, device: torch.device | str) -> None:
        """Load or fit the weights; images are (N, C, H, W) floats in [0, 1], labels (N,) integers."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images."""


def to_uint8(images: Tensor) -> Tensor:
    """The bytes of images in [0, 1], as they are saved and scored: floor(255 x + 1/2), clamped to 0..255.

    The same rule as EDM's 127.5 x' + 128 on x' = 2x - 1 in [-1, 1] (Karras et al. 2022, `generate.py`):
    rounding to nearest, without the wrap-around of a bare cast (1.01 would become 1).

    Raises:
        ValueError: for integers, whose range is ambiguous, and for NaN or infinity, which a cast would hide.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide bytes by 255 first")
    if not torch.isfinite(images).all():
        raise ValueError("images contain NaN or infinity: they can be neither saved nor scored")
    return (images.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def metric_name(extractor: Extractor, count: int) -> str:
    """The name under which a Fréchet distance over `count` samples is logged, such as `fid_inception_50k`.

    Extractor and count belong to the name, because a distance is biased upwards by a finite count and numbers
    of different extractors or counts must never be compared.
    """
    return f"{extractor.short}_{extractor.name}_{sample_count(count)}"


def sample_count(count: int) -> str:
    """A count as it stands in the name of a metric: thousands as 10k, anything else in full."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
