"""Flips and non-leaking augmentation of images: random transformations, with labels that tell the network which.

Karras et al. 2022 (arXiv:2206.00364), Appendix F.2 and Table 6.  The network learns the density of the augmented data
given the labels; labels of zero, as in sampling, stand for the data as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9
"""Number of labels of an image."""
SCALE, ANISOTROPY, TRANSLATION = 2**0.2, 2**0.2, 1 / 8


def check(probability: float, is_image: bool, flip: bool, pairs: str | None) -> None:
    """Raise ValueError for settings of the data that augmentation contradicts."""
    if probability and not is_image:
        raise ValueError(f"data.augment={probability} transforms images, but these are points: set data.augment=0")
    if probability and flip:
        raise ValueError(f"data.augment={probability} mirrors images too: set data.flip=false")
    if probability and pairs is not None:
        raise ValueError("data.pairs holds the noise of images as they are: set data.augment=0")


def parameters(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """a_0 ... a_7 of each image, (count, 8) float64: Table 6.

    a_0: horizontal flip, 0 or 1, always drawn.  The others are zero unless their transformation is applied, each with
    the given probability: a_1 vertical flip, a_2 scaling, a_3 rotation, a_4 and a_5 axis and amount of the anisotropy
    (half of the axes are upright, as in the authors' program), a_6 and a_7 translation.
    """
    flips = torch.randint(2, (count, 2), generator=generator).double()
    angles = (2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1) * math.pi
    scaling, anisotropy, *shift = torch.randn(4, count, generator=generator, dtype=torch.float64)
    applied = torch.rand(5, count, generator=generator, dtype=torch.float64) < probability
    tilted = torch.randint(2, (count,), generator=generator)
    columns = [
        flips[:, 0],
        flips[:, 1] * applied[0],
        scaling * applied[1],
        angles[:, 0] * applied[2],
        angles[:, 1] * applied[3] * tilted,
        anisotropy * applied[3],
        *(one * applied[4] for one in shift),
    ]
    return torch.stack(columns, dim=1)


def labels(a: Tensor) -> Tensor:
    """The labels (B, 9) float32 of parameters (B, 8), zero for an unchanged image: Table 6, "Conditioning"."""
    flip_x, flip_y, scaling, angle, axis, anisotropy, shift_x, shift_y = a.unbind(1)
    columns = [flip_x, flip_y, scaling, angle.cos() - 1, angle.sin()]
    columns += [anisotropy * axis.cos(), anisotropy * axis.sin(), shift_x, shift_y]
    return torch.stack(columns, dim=1).float()


def mirror(x: Tensor, chosen: Tensor, dim: int = -1) -> Tensor:
    """Mirror the images x (B, ..., H, W) for which `chosen` (B,) is true, by default left to right."""
    # index_select copies entire images; torch.where on bytes takes four times as long.
    both = torch.cat([x, x.flip(dim)])
    return both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * chosen)


def augment(x: Tensor, a: Tensor) -> Tensor:
    """The images x (B, C, H, W), float, transformed by parameters (B, 8): flipped, scaled, rotated, stretched, shifted.

    Flips are exact.  The others resample at twice the resolution, and images without them are not resampled.  Pixels
    from outside of an image are its mirror images.  Results may leave the range of x a little.
    """
    for flip, dim in ((a[:, 0], 3), (a[:, 1], 2)):
        x = mirror(x, flip.to(x.device, torch.int64), dim)
    moved = a[:, 2:].any(1).nonzero().flatten()
    return x if len(moved) == 0 else x.index_copy(0, moved.to(x.device), resampled(x[moved.to(x.device)], a[moved]))


def resampled(x: Tensor, a: Tensor) -> Tensor:
    """x (B, C, H, W) with all transformations of the parameters (B, 8) but the flips."""
    size, larger = x.shape[2:], [2 * n for n in x.shape[2:]]
    # Coordinates of `grid_sample` run from -1 to 1 along each side: pixels would be of another unit along the other.
    half = torch.tensor([size[1] / 2, size[0] / 2, 1.0], dtype=a.dtype)
    inverse = torch.linalg.inv(matrices(a, size)) * half / half[:, None]
    grid = F.affine_grid(inverse[:, :2].to(x), [*x.shape[:2], *larger], align_corners=False)
    fine = F.interpolate(x, size=larger, mode="bicubic")
    fine = F.grid_sample(fine, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return F.interpolate(fine, size=list(size), mode="bicubic", antialias=True)


def matrices(a: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, 3, 3) of homogeneous coordinates (x, y, 1) in pixels from the centre, y downwards, without the flips."""
    _, _, scaling, angle, axis, anisotropy, shift_x, shift_y = a.unbind(1)
    one = torch.ones_like(scaling)
    stretch = ANISOTROPY**anisotropy
    stretched = rotation(axis) @ diagonal(stretch, 1 / stretch) @ rotation(-axis)
    shifted = diagonal(one, one)
    shifted[:, 0, 2], shifted[:, 1, 2] = TRANSLATION * size[1] * shift_x, TRANSLATION * size[0] * shift_y
    return shifted @ stretched @ rotation(-angle) @ diagonal(SCALE**scaling, SCALE**scaling)


def diagonal(x: Tensor, y: Tensor) -> Tensor:
    """Scalings (B, 3, 3) by x (B,) and y (B,)."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def rotation(angle: Tensor) -> Tensor:
    """Rotations (B, 3, 3) by angle (B,), in radians."""
    found = diagonal(angle.cos(), angle.cos())
    found[:, 0, 1], found[:, 1, 0] = -angle.sin(), angle.sin()
    return found
