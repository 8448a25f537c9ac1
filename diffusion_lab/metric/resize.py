"""Bringing images to the size that a feature network expects, by the two rules that scores are published under."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) to (B, C, size, size) as TensorFlow 1's `resize_bilinear` does, channels last in memory.

    Output row i lies at i H / size of the input, without half-pixel centres and without antialiasing: the rule
    that every published FID rests on (Parmar et al. 2022, section 3). Bilinear interpolation is separable, so it is
    two matrix products, y = A x B^T, of float32 images.
    """
    batch, channels, height, width = images.shape
    rows = images @ _bilinear(width, size, images.device).T
    rows = rows.permute(0, 2, 3, 1).reshape(batch, height, size * channels)
    return (_bilinear(height, size, images.device) @ rows).view(batch, size, size, channels).permute(0, 3, 1, 2)


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) in [0, 1] to (B, C, size, size) by antialiased cubic interpolation, clamped to [0, 1].

    Keys' kernel with a = -1/2 and half-pixel centres, as Pillow's BICUBIC (Keys 1981; Parmar et al. 2022).
    """
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _bilinear(length: int, size: int, device: torch.device) -> Tensor:
    """The matrix (size, length) that interpolates a line of `length` pixels at i length / size."""
    # In float32, as TensorFlow computes them: elsewhere a position may fall to the pixel before.
    scale = torch.tensor(length / size, dtype=torch.float32, device=device)
    position = torch.arange(size, dtype=torch.float32, device=device) * scale
    lower = position.long().clamp_max(length - 1)
    upper = (lower + 1).clamp_max(length - 1)
    share = position - lower
    matrix = torch.zeros(size, length, dtype=torch.float32, device=device)
    row = torch.arange(size, device=device)
    matrix[row, lower] = 1 - share
    matrix[row, upper] += share
    return matrix
