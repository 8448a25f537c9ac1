"""The interface of feature extractors, quantisation of images, and names of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

QUANTISATION = "bytes, floor(255 x + 1/2)"
"""`to_uint8` as described in a protocol."""


class Extractor(Protocol):
    """Maps images to feature vectors, for example for a Fréchet distance; a plain object, not an `nn.Module`.

    Attributes:
        name: part of the names of metrics.
        short: "fid" or "fd", the name of the Fréchet distance.
        dimensions: D, the length of a feature vector.
        classes: number of logits, for an Inception Score; 0 if there are none.
        digest: sha256 of the weights, known after `prepare`.  Scores are comparable, and statistics reused, only for
            equal digests.
        learned: whether `prepare` trains on the training images.
    """

    name: str
    short: str
    dimensions: int
    classes: int
    digest: str
    learned: bool

    def prepare(self, train_images: Tensor | None, train_labels: Tensor | None, device: torch.device | str) -> None:
        """Load or train the weights; images are (N, C, H, W) floats in [0, 1], labels (N,) integers."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images."""

    def logits(self, features: Tensor) -> Tensor:
        """Return float32 logits (B, classes) of features (B, dimensions).

        Raises:
            ValueError: if `classes` is 0.
        """

    def protocol(self) -> dict[str, str | int]:
        """Return all settings that affect the features, after `prepare`; metrics are comparable if all are equal."""


def to_uint8(images: Tensor) -> Tensor:
    """Quantise images in [0, 1] to bytes, as they are saved and scored: floor(255 x + 1/2), clamped to 0..255.

    Equal to EDM's 127.5 x' + 128 for x' = 2x - 1 in [-1, 1] (Karras et al. 2022, `generate.py`). Unlike a plain cast,
    this rounds to nearest and does not wrap around (1.01 would become 1).

    Raises:
        ValueError: for integers, whose range is ambiguous, and for NaN or infinity, which a cast would hide.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide bytes by 255 first")
    if not torch.isfinite(images).all():
        raise ValueError("images contain NaN or infinity and cannot be saved or scored")
    return (images.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context for inference in exact float32: no gradients, no autocast, no TF32 or bfloat16 products.

    TF32, torch's default for convolutions on GPUs, has only 10 bits of mantissa.
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
    """Format a number of samples for the name of a metric: 10000 as 10k, 1234 as 1234."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
