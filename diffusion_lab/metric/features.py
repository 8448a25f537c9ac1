"""What a feature extractor is, what it is fed, and how its score is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

QUANTISATION = "bytes, floor(255 x + 1/2)"
"""The rule of `to_uint8` as it stands in a protocol."""


class Extractor(Protocol):
    """Maps images to the vectors whose means and covariances a Fréchet distance compares.

    A plain object, never an `nn.Module`. `digest` is the sha256 that identifies the weights once `prepare`
    has run: two scores are comparable, and statistics may be cached, only under equal digests. `learned` tells
    whether `prepare` fits to the training images, or needs none. `classes` counts the class scores that `logits`
    gives, for an Inception Score; 0 where there are none.
    """

    name: str
    short: str
    dimensions: int
    classes: int
    digest: str
    learned: bool

    def prepare(self, train_images: Tensor | None, train_labels: Tensor | None, device: torch.device | str) -> None:
        """Load or fit the weights; images are (N, C, H, W) floats in [0, 1], labels (N,) integers."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images."""

    def logits(self, features: Tensor) -> Tensor:
        """Float32 class scores (B, classes) from features (B, dimensions) of the very same pass.

        Raises:
            ValueError: if `classes` is 0.
        """

    def protocol(self) -> dict[str, str | int]:
        """Everything that changes the features, once `prepare` has run: numbers compare only where all is equal."""


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


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 proper for a network that only reads: no gradients, no autocast, no TF32 or bfloat16 products.

    TF32, torch's default for convolutions on GPUs, keeps only 10 bits of a feature.
    """
    backends = torch.backends
    products = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


def sample_count(count: int) -> str:
    """A count as it stands in the name of a metric: thousands as 10k, anything else in full."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
