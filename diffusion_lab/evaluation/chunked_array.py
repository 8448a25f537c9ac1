"""A long array on disk in files of a fixed number of rows, which several processes can write, also after a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.storage.atomic_file import atomic_write


class ChunkedArray:
    """Rows of an array in chunks: a file holds `size` consecutive rows, named by the first: `<folder>/00000500.npy`.

    The chunks depend on `size` alone, not on the number of processes.  Files are written atomically, so that every
    existing file is complete, and after an interruption only the missing chunks are computed.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder, self.size = Path(folder), size

    def path(self, chunk: range) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"{chunk.start:08d}.npy"

    def ranges(self, count: int) -> list[range]:
        """Return the chunks of rows 0..count-1."""
        return [range(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def has(self, chunk: range) -> bool:
        """Whether all rows of the chunk are stored (its file may hold more)."""
        try:
            return len(np.load(self.path(chunk), mmap_mode="r")) >= len(chunk)
        except (FileNotFoundError, ValueError, EOFError):  # missing, or damaged since
            return False

    def missing(self, count: int) -> list[range]:
        """Return the chunks of rows 0..count-1 that are not stored."""
        files = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [chunk for chunk in self.ranges(count) if self.path(chunk).name not in files or not self.has(chunk)]

    def write(self, chunk: range, rows: Tensor) -> None:
        """Store the rows of a chunk, atomically."""
        with atomic_write(self.path(chunk)) as file:
            np.save(file, rows.detach().cpu().numpy())

    def read(self, chunk: range) -> Tensor:
        """Return the rows of a stored chunk."""
        return torch.from_numpy(np.load(self.path(chunk))[: len(chunk)])


class Rows:
    """A range of rows of a `ChunkedArray` as one array: `rows[indices]` reads only these rows.

    Args:
        chunks: the array, in which all these rows are stored.
        span: the range of rows.
    """

    def __init__(self, chunks: ChunkedArray, span: range) -> None:
        self.chunks, self.span = chunks, span
        start = span.start // chunks.size * chunks.size
        first = np.load(chunks.path(range(start, start + 1)), mmap_mode="r")
        self.shape, self.dtype = (len(span), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        rows = np.arange(self.span.start, self.span.stop)[index]
        files, offsets = np.divmod(rows, self.chunks.size)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number in np.unique(files):
            in_file = files == number
            start = int(number) * self.chunks.size
            stored = np.load(self.chunks.path(range(start, start + 1)), mmap_mode="r")
            out[in_file] = stored[offsets[in_file]]
        return torch.from_numpy(out)
