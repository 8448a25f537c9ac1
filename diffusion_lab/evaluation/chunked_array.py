"""A long array on disk in files of fixed numbers of rows, which many processes fill and any of them may be killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.storage.atomic_file import atomic_write


class ChunkedArray:
    """Rows of an array: each file holds `size` consecutive ones and is named after the first, `<folder>/00000500.npy`.

    Which rows share a file depends on `size` alone, not on how many processes write.  A file appears under its name
    once it is whole, so what is there is right, also for another `size`, and what is not is all that is left to do.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder, self.size = Path(folder), size

    def path(self, chunk: range) -> Path:
        """The file of a chunk."""
        return self.folder / f"{chunk.start:08d}.npy"

    def ranges(self, count: int) -> list[range]:
        """The chunks of rows 0..count-1."""
        return [range(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def has(self, chunk: range) -> bool:
        """Whether all rows of the chunk are there (its file may hold more)."""
        try:
            return len(np.load(self.path(chunk), mmap_mode="r")) >= len(chunk)
        except (FileNotFoundError, ValueError, EOFError):  # not there, or damaged since
            return False

    def missing(self, count: int) -> list[range]:
        """The chunks of rows 0..count-1 that are not there."""
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [chunk for chunk in self.ranges(count) if self.path(chunk).name not in there or not self.has(chunk)]

    def write(self, chunk: range, rows: Tensor) -> None:
        """Store the rows of a chunk, whole or not at all."""
        with atomic_write(self.path(chunk)) as file:
            np.save(file, rows.detach().cpu().numpy())

    def read(self, chunk: range) -> Tensor:
        """The rows of a chunk that is there."""
        return torch.from_numpy(np.load(self.path(chunk))[: len(chunk)])


class Rows:
    """Some consecutive rows of a store seen as one array: `rows[indices]` reads those rows and nothing else.

    Args:
        chunks: the store, in which all of them are.
        span: which rows of it.
    """

    def __init__(self, chunks: ChunkedArray, span: range) -> None:
        self.chunks, self.span = chunks, span
        start = span.start // chunks.size * chunks.size
        first = np.load(chunks.path(range(start, start + 1)), mmap_mode="r")
        self.shape, self.dtype = (len(span), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        wanted = np.arange(self.span.start, self.span.stop)[index]
        files, places = np.divmod(wanted, self.chunks.size)
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for number in np.unique(files):
            here = files == number
            start = int(number) * self.chunks.size
            stored = np.load(self.chunks.path(range(start, start + 1)), mmap_mode="r")
            out[here] = stored[places[here]]
        return torch.from_numpy(out)
