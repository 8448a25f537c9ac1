"""Tiles of images for Winograd's convolution, in parts for the threads of a CPU.

Images are in channels_last, (B, H, W, C); tiles are (P, n, n, T, C), for P parts of the images. Torch divides the first
dimension among its threads, so that each works on one part from pixels to outputs: a core reads slowly what another has
just written, above all if they share no cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

OUTPUTS, TILE = 4, 6
TILES = 64
"""Tiles transformed at once, for each thread: few enough to stay in the cache."""
PARTS = 8
"""Largest number of parts; each has its own copy of the transformed filters."""


class Workspace(threading.local):
    """Memory of this thread for intermediate tiles, kept between calls.

    New memory, which the kernel has to supply, and memory that has left the cache take as long as the arithmetic.
    """

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor whose values are undefined; it is overwritten by the next one of this name."""
        size, flat = math.prod(shape), self.memory.get((name, dtype))
        if flat is None or len(flat) < size:
            with torch.inference_mode(False):
                flat = self.memory[name, dtype] = torch.empty(size, dtype=dtype)
        return flat[:size].view(shape)


work = Workspace()


def along_rows(matrix: Tensor, tiles: Tensor, name: str) -> Tensor:
    """M t for every tile t, with M (a, n): (P, n, m, ...) -> (P, a, m, ...), in the memory of this name."""
    (a, n), (parts, _, *rest) = matrix.shape, tiles.shape
    out = work(name, matrix.dtype, parts, a, math.prod(rest))
    return torch.bmm(matrix.expand(parts, a, n), tiles.reshape(parts, n, -1), out=out).view(parts, a, *rest)


def along_columns(matrix: Tensor, tiles: Tensor, name: str) -> Tensor:
    """t M^T for every tile t, with M (a, n): (P, m, n, ...) -> (P, m, a, ...), in the memory of this name."""
    (a, n), (parts, m, _, *rest) = matrix.shape, tiles.shape
    out = work(name, matrix.dtype, parts * m, a, math.prod(rest))
    return torch.bmm(matrix.expand(parts * m, a, n), tiles.view(parts * m, n, -1), out=out).view(parts, m, a, *rest)


def transform(matrix: Tensor, tiles: Tensor, name: str, result: str) -> Tensor:
    """M t M^T for every tile t, with M (a, n): (P, n, n, ...) -> (P, a, a, ...).

    Each step writes to other memory, of the same size in each call: a thread then overwrites what it wrote itself.
    """
    return along_columns(matrix, along_rows(matrix, tiles, f"{name} by rows"), result)


class Parts(NamedTuple):
    """Division of images (B, H, W, C) into parts for the threads: along dimension 0 or, of few images, along 1."""

    dimension: int
    count: int

    @classmethod
    def of(cls, x: Tensor) -> Parts:
        """One part for each thread, but no smaller ones than `TILES`, for which the filters would cost too much."""
        batch, height, width, _ = x.shape
        most = max(1, min(torch.get_num_threads(), PARTS, batch * height * width // (OUTPUTS**2 * TILES)))
        images, rows = math.gcd(batch, most), math.gcd(height // OUTPUTS, most)
        return cls(0, images) if images >= rows else cls(1, rows)

    def first(self, tiles: Tensor) -> Tensor:
        """View (P, n, n, B, H/4, W/4, C) of tiles (n, n, B, H/4, W/4, C)."""
        dimension = 2 + self.dimension
        return tiles.unflatten(dimension, (self.count, -1)).movedim(dimension, 0)

    def chunks(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Images, and rows of them, of x: chunks of equal parts, which stay in the cache."""
        batch, height, width, _ = x.shape
        tiles = TILES * (torch.get_num_threads() // self.count)
        of_images, of_rows = (self.count, 1) if self.dimension == 0 else (1, self.count)
        rows = min(height, max(1, OUTPUTS * tiles // width) * OUTPUTS * of_rows)
        images = max(1, OUTPUTS**2 * tiles * of_rows // (rows * width)) * of_images
        for image in range(0, batch, images):
            for row in range(0, height, rows):
                yield slice(image, image + images), slice(row, min(row + rows, height))


def overlapping(x: Tensor, rows: slice, parts: Parts) -> Tensor:
    """Tiles (P, 6, 6, T, C), four pixels apart, for outputs in these rows of (B, H, W, C) with a border of zeros."""
    batch, _, width, channels = x.shape
    height, above = rows.stop - rows.start, max(rows.start - 1, 0)
    padded = work("padded", x.dtype, batch, height + 2, width + 2, channels).zero_()
    known = x[:, above : rows.stop + 1]
    padded[:, above - rows.start + 1 :, 1:-1][:, : known.shape[1]].copy_(known)
    image, row, column, _ = padded.stride()
    shape = (TILE, TILE, batch, height // OUTPUTS, width // OUTPUTS, channels)
    tiles = padded.as_strided(shape, (row, column, image, OUTPUTS * row, OUTPUTS * column, 1))
    return copied(parts.first(tiles), "tiles")


def disjoint(x: Tensor, parts: Parts) -> Tensor:
    """View of images (B, H, W, C) as tiles (P, 4, 4, B, H/4, W/4, C)."""
    return parts.first(x.unflatten(1, (-1, OUTPUTS)).unflatten(3, (-1, OUTPUTS)).permute(2, 4, 0, 1, 3, 5))


def copied(tiles: Tensor, name: str) -> Tensor:
    """Copy of tiles (P, n, n, B, H/4, W/4, C), as (P, n, n, T, C)."""
    return work(name, tiles.dtype, *tiles.shape).copy_(tiles).flatten(3, 5)
