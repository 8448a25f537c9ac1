"""Data sets of encoded images in files, archives or tables, decoded once or on access."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory
from diffusion_lab.data.framing import Framing, Resampling
from diffusion_lab.data.image_file import MAX_PIXELS, MODES
from diffusion_lab.data.scan import Scan, cached_scan, with_progress
from diffusion_lab.errors import in_one_line
from diffusion_lab.ranges import Count, Levels, NonNegativeInt

Result = TypeVar("Result")


class Source(ABC):
    """Encoded images in a fixed order.  It is pickled into worker processes, so only `open` may open files."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the name of the image in the data set, independent of the data set's path."""

    @abstractmethod
    def location(self, index: int) -> str:
        """Return where the image is stored, for messages."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """Open the encoded image; called from any thread of any process."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Source:
        """Return the source of these images, in this order."""

    @abstractmethod
    def stamp(self) -> bytes:
        """Return bytes that change when an image changes, without reading any: names, sizes, modification times."""

    def digest(self) -> bytes:
        """Return the sha256 of every key and of all encoded bytes, in order."""
        digest = hashlib.sha256()
        for key, content in zip(map(self.key, range(len(self))), parallel_map(self._hash, len(self)), strict=True):
            digest.update(f"{key}\n".encode(errors="surrogateescape") + content)
        return digest.digest()

    def _hash(self, index: int) -> bytes:
        with self.open(index) as file:
            return hashlib.sha256(file.read()).digest()


class Encoded(Dataset):
    """A source with labels (N,), decoded on access: `__getitems__` returns (uint8 (B, C, H, W), labels (B,)).

    Decoding uses several threads, but only one in a worker process of a DataLoader. Raises ValueError with the location
    of an image that is damaged or not 8-bit. `traits` counts the images with each trait (`framing.REMARKS`), if known.
    """

    def __init__(self, source: Source, labels: Tensor, framing: Framing, traits: Counter[str] | None = None) -> None:
        self.source, self.labels, self.framing = source, labels.to(torch.int64), framing
        self.traits: Counter[str] = traits or Counter()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._read(index), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        decoded = parallel_map(lambda number: self._read(indices[number]), len(indices))
        return torch.stack(decoded), self.labels[torch.as_tensor(indices)]

    def try_decode(self, index: int, into: Tensor | None = None) -> set[str] | str:
        """Decode one image, into row `index` of `into` if given; return its traits, or the reason of a failure.

        Raises OSError for an error of the disk.
        """
        try:
            with self.source.open(index) as file:
                pixels, traits = self.framing(file)
        except Exception as error:  # PIL's plugins raise whatever their parsers raise
            if getattr(error, "errno", None):
                raise
            return in_one_line(error)
        if into is not None:
            into[index] = pixels
        return traits

    def digest(self) -> bytes:
        """Return the sha256 of the framing and the source."""
        return hashlib.sha256(self.framing.content(self.traits).encode() + self.source.digest()).digest()

    def subset(self, indices: Sequence[int], traits: Counter[str]) -> Encoded:
        """Return the data set of these images, with their traits."""
        return Encoded(self.source.subset(indices), self.labels[torch.as_tensor(indices)], self.framing, traits)

    def unreadable(self, index: int, why: object, more: str = "") -> ValueError:
        """Return the error for an image that cannot be used."""
        return ValueError(
            f"{self.source.location(index)} is not a readable 8-bit image ({why}){more}: "
            "repair or remove it, or set data.on_corrupt=skip"
        )

    def _read(self, index: int) -> Tensor:
        try:
            with self.source.open(index) as file:
                return self.framing(file)[0]
        except Exception as error:
            raise self.unreadable(index, error) from error


class Decoded(InMemory):
    """An encoded data set, decoded into memory; it has the digest of the encoded one."""

    def __init__(self, encoded: Encoded, x: Tensor) -> None:
        super().__init__(x, encoded.labels)
        self.encoded = encoded

    def digest(self) -> bytes:
        return self.encoded.digest()


Grey = Annotated[int, Interval(ge=0, le=255)]


@dataclass(kw_only=True, eq=False)
class EncodedImages(DataModule):
    """A data set of encoded images.

    If all images decoded take at most `memory_limit_mb` (MiB), they are kept in memory. Otherwise `num_workers`
    processes per device decode them during training.

    Every image is decoded once before training to find damaged ones; for sets larger than memory, only if the set has
    changed since the last time. A damaged image is an error; on_corrupt="skip" skips and counts it.
    background: grey or [red, green, blue], 0..255, under transparent pixels.  max_pixels: largest size of an image.
    """

    shape: tuple[Count, ...] = (3, 64, 64)
    grey_levels: Levels | None = 256
    background: Grey | tuple[Grey, ...] = 255
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    max_pixels: Count = MAX_PIXELS
    memory_limit_mb: NonNegativeInt = 2048
    num_workers: NonNegativeInt = 4
    eval_batch_size: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_image or self.shape[0] not in MODES:
            raise ValueError(f"data.shape={list(self.shape)} must be [1 or 3, height, width]")
        if np.size(self.background) not in (1, 3):
            raise ValueError(f"data.background={self.background} must be a grey or [red,green,blue]")

    def framing(self, crop: int | None = None, resampling: Resampling = "bicubic") -> Framing:
        """Return how images of this data set are cropped and resized."""
        colour = np.atleast_1d(self.background).tolist()
        return Framing(self.shape, crop, resampling, tuple(colour * (3 // len(colour))), self.max_pixels)

    def make_splits(self, train: Encoded, held_out: Encoded, how: str, notes: Sequence[str] = ()) -> Splits:
        """Return the splits without damaged images, decoded into memory if they fit, with notes on both."""
        total = len(train) + len(held_out)
        fits = total * math.prod(self.shape) <= self.memory_limit_mb * 2**20
        self.broken: list[str] = []
        check = self._decode_all if fits else self._scan
        self.num_workers = 0 if fits else self.num_workers
        parts = [check(train), check(held_out)]
        images = [part.encoded if fits else part for part in parts]
        skipped = total - sum(map(len, parts))
        remarks = images[0].framing.remarks(images[0].traits + images[1].traits, sum(map(len, parts)))
        if skipped:
            names = ", ".join(self.broken[:3]) + ", ..." * (skipped > 3)
            are = f"{skipped} of {total} images {'is' if skipped == 1 else 'are'} damaged and skipped"
            remarks.append(f"{are} (data.on_corrupt=skip): {names}")
        return Splits(*parts, how, (*remarks, *notes))

    def _decode_all(self, part: Encoded) -> Decoded:
        x = torch.empty(len(part), *self.shape, dtype=torch.uint8)
        scan = Scan.of(parallel_map(partial(part.try_decode, into=x), len(part)))
        good = self._without_broken(part, scan)
        return Decoded(good, x if good is part else x[[n for n in range(len(part)) if n not in scan.broken]])

    def _scan(self, part: Encoded) -> Encoded:
        stamp = f"{part.framing!r} {part.framing.background} {part.framing.max_pixels} {len(part)} ".encode()
        decode = with_progress(part.try_decode, len(part))
        scan = cached_scan(stamp + part.source.stamp(), lambda: Scan.of(parallel_map(decode, len(part))))
        return self._without_broken(part, scan)

    def _without_broken(self, part: Encoded, scan: Scan) -> Encoded:
        """Return the images that can be decoded; unless on_corrupt="skip", a damaged one is an error."""
        if not scan.broken:
            part.traits = scan.traits
            return part
        (first, why), others = min(scan.broken.items()), len(scan.broken) - 1
        if len(scan.broken) == len(part) and self.on_corrupt == "skip":
            where = f"{part.source.location(first)} ({why})"
            raise ValueError(f"no image of a split can be decoded, the first is {where}: repair it, or add images")
        if self.on_corrupt == "refuse":
            raise part.unreadable(first, why, f", and {others} more of {len(part)}" if others else "")
        self.broken += [os.path.basename(part.source.location(number)) for number in sorted(scan.broken)]
        return part.subset([n for n in range(len(part)) if n not in scan.broken], scan.traits)


def parallel_map(function: Callable[[int], Result], count: int) -> list[Result]:
    """Return [function(0), ..., function(count - 1)], by threads unless in a worker process of a DataLoader."""
    size = max(1, min(256, count // 64))  # indices per task: a task costs more than decoding one small image

    def task(first: int) -> list[Result]:
        return [function(index) for index in range(first, min(first + size, count))]

    if get_worker_info() is not None:
        return [result for first in range(0, count, size) for result in task(first)]
    with ThreadPoolExecutor() as pool:
        return [result for results in pool.map(task, range(0, count, size)) for result in results]


def hold_out(keys: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Return the indices of training and held-out items; each item is assigned by the hash of its key alone.

    An item is held out if its hash, scaled to [0, 1), is below `fraction`. If a split would be empty, as in small
    sets, the item with the nearest hash is moved there.

    Raises ValueError for fewer than two items.
    """
    digests = [hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest() for key in keys]
    hashes = [int.from_bytes(digest, "big") / 2**64 for digest in digests]
    if len(keys) < 2:
        raise ValueError(f"data.held_out_fraction={fraction} of {len(keys)} images leaves a split empty: add another")
    ordered = sorted(hashes)
    threshold = min(max(fraction, ordered[1]), ordered[-1])
    parts: tuple[list[int], list[int]] = ([], [])
    for index, value in enumerate(hashes):
        parts[value < threshold].append(index)
    return parts
