"""Resize images for a feature network, by the two methods used for published metrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Resize images (B, C, H, W) to (B, C, size, size) like TensorFlow 1's `resize_bilinear`; channels last in memory.

    Output row i is at position i H / size of the input, without half-pixel centres and without antialiasing, as for
    published FIDs (Parmar et al. 2022, section 3). Bilinear interpolation is separable: two matrix products,
    y = A x B^T, in float32.
    """
    batch, channels, height, width = images.shape
    rows = images @ _bilinear(width, size, images.device).T
    rows = rows.permute(0, 2, 3, 1).reshape(batch, height, size * channels)
    return (_bilinear(height, size, images.device) @ rows).view(batch, size, size, channels).permute(0, 3, 1, 2)


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize images (B, C, H, W) in [0, 1] to (B, C, size, size), antialiased bicubic, clamped to [0, 1].

    Keys' kernel with a = -1/2 and half-pixel centres, like Pillow's BICUBIC (Keys 1981; Parmar et al. 2022).
    """
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _bilinear(length: int, size: int, device: torch.device) -> Tensor:
    """Return the matrix (size, length) that interpolates a row of `length` pixels at positions i length / size."""
    # In float32 like TensorFlow: in another precision a position may round down to the previous pixel.
    scale = torch.tensor(length / size, dtype=torch.float32, device=device)
    position = torch.arange(size, dtype=torch.float32, device=device) * scale
    lower = position.long().clamp_max(length - 1)
    upper = (lower + 1).clamp_max(length - 1)
    weight = position - lower
    matrix = torch.zeros(size, length, dtype=torch.float32, device=device)
    row = torch.arange(size, device=device)
    matrix[row, lower] = 1 - weight
    matrix[row, upper] += weight
    return matrix
