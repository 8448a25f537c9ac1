"""Images that lie encoded in files, archives or tables, and are decoded once or when asked for."""

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
from typing import BinaryIO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diffusion_lab.data.base import DataModule, Splits, require_positive
from diffusion_lab.data.batches import InMemory
from diffusion_lab.data.framing import Framing, Resampling
from diffusion_lab.data.image_file import MAX_PIXELS, MODES
from diffusion_lab.data.scan import Survey, remembered, telling

Result = TypeVar("Result")


class Source(ABC):
    """Encoded images in a fixed order. It is pickled into worker processes: open files belong to `open`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """What the set calls the image, wherever the set lies."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where the image lies, for a person."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The encoded image, in any thread of any process."""

    @abstractmethod
    def take(self, indices: Sequence[int]) -> Source:
        """Only some of the images, in that order."""

    @abstractmethod
    def stamp(self) -> bytes:
        """What changes when an image does, without reading any: names, sizes, times of the last change."""

    def digest(self) -> bytes:
        """sha256 of every key and of all encoded bytes, in order."""
        found = hashlib.sha256()
        for key, content in zip(map(self.key, range(len(self))), each(self._hash, len(self)), strict=True):
            found.update(f"{key}\n".encode(errors="surrogateescape") + content)
        return found.digest()

    def _hash(self, index: int) -> bytes:
        with self.open(index) as file:
            return hashlib.sha256(file.read()).digest()


class Encoded(Dataset):
    """A source with labels (N,), decoded when asked for: `__getitems__` gives (uint8 (B, C, H, W), labels (B,)).

    In the main process threads decode, in a worker process of a loader only that process. Raises ValueError naming the
    place of an image that is damaged or not of 8 bits. `traits` says how many images have which, once that is known.
    """

    def __init__(self, source: Source, labels: Tensor, framing: Framing, traits: Counter[str] | None = None) -> None:
        self.source, self.labels, self.framing = source, labels.to(torch.int64), framing
        self.traits: Counter[str] = traits or Counter()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._read(index), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        decoded = each(lambda number: self._read(indices[number]), len(indices))
        return torch.stack(decoded), self.labels[torch.as_tensor(indices)]

    def look(self, index: int, into: Tensor | None = None) -> set[str] | str:
        """Decode one image, also into its row of an array: its traits, or why that cannot be done.

        Raises OSError for what is a fault of the disk and not of the image.
        """
        try:
            with self.source.open(index) as file:
                pixels, traits = self.framing(file)
        except Exception as error:  # PIL's plugins raise whatever their parsers raise
            if getattr(error, "errno", None):
                raise
            return " ".join(str(error).split()) or type(error).__name__
        if into is not None:
            into[index] = pixels
        return traits

    def digest(self) -> bytes:
        """sha256 of what the framing does to these images, and of the source."""
        return hashlib.sha256(self.framing.content(self.traits).encode() + self.source.digest()).digest()

    def take(self, indices: Sequence[int], traits: Counter[str]) -> Encoded:
        """Only some of the images, of which it is known how many have which trait."""
        return Encoded(self.source.take(indices), self.labels[torch.as_tensor(indices)], self.framing, traits)

    def unreadable(self, index: int, why: object, more: str = "") -> ValueError:
        """The error that names an image, why it cannot be used, and what to do."""
        return ValueError(
            f"{self.source.place(index)} is not a readable 8-bit image ({why}){more}: "
            "repair it or take it out of the set, or set data.on_corrupt=skip"
        )

    def _read(self, index: int) -> Tensor:
        try:
            with self.source.open(index) as file:
                return self.framing(file)[0]
        except Exception as error:
            raise self.unreadable(index, error) from error


class Decoded(InMemory):
    """The images of an encoded set, all decoded already; what identifies them is what identifies that set."""

    def __init__(self, encoded: Encoded, x: Tensor) -> None:
        super().__init__(x, encoded.labels)
        self.encoded = encoded

    def digest(self) -> bytes:
        return self.encoded.digest()


@dataclass(kw_only=True, eq=False)
class EncodedImages(DataModule):
    """A data set of encoded images. One that takes at most `memory_limit_mb` (MiB) decoded is kept in memory; a larger
    one is decoded by `num_workers` processes per device.

    Every image is decoded once before training, a larger set's only if it has changed since it last was. One that
    cannot be decoded is refused by name; on_corrupt="skip" leaves it out and counts it.  background: grey or [red,
    green, blue], 0..255, that transparent pixels are composited over.  max_pixels: most pixels of a file that is read.
    """

    shape: tuple[int, ...] = (3, 64, 64)
    grey_levels: int | None = 256
    background: int | tuple[int, ...] = 255
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    max_pixels: int = MAX_PIXELS
    memory_limit_mb: int = 2048
    num_workers: int = 4
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_workers, self.memory_limit_mb) < 0:
            raise ValueError("data.num_workers and data.memory_limit_mb must not be negative")
        if not self.is_image or self.shape[0] not in MODES:
            raise ValueError(f"data.shape={list(self.shape)} must be [1 or 3, height, width]")
        if self.on_corrupt not in ("refuse", "skip"):
            raise ValueError(f"data.on_corrupt={self.on_corrupt} does not exist: choose refuse or skip")
        require_positive({"max_pixels": self.max_pixels})
        colour = np.atleast_1d(self.background).tolist()
        if len(colour) not in (1, 3) or not all(type(value) is int and 0 <= value <= 255 for value in colour):
            raise ValueError(
                f"data.background={self.background} must be a grey or [red,green,blue], each from 0 to 255"
            )

    def framing(self, crop: int | None = None, resampling: Resampling = "bicubic") -> Framing:
        """How this set's images become pixels."""
        colour = np.atleast_1d(self.background).tolist()
        return Framing(self.shape, crop, resampling, tuple(colour * (3 // len(colour))), self.max_pixels)

    def divided(self, train: Encoded, held_out: Encoded, how: str, notes: Sequence[str] = ()) -> Splits:
        """The splits, in memory if they are small enough, without what was left out and with what is to be said."""
        fits = (len(train) + len(held_out)) * math.prod(self.shape) <= self.memory_limit_mb * 2**20
        self.broken: list[str] = []
        take = self._decoded if fits else self._surveyed
        self.num_workers = 0 if fits else self.num_workers
        parts = [take(train), take(held_out)]
        images = [part.encoded if fits else part for part in parts]
        whole = len(train) + len(held_out)
        skipped = whole - sum(map(len, parts))
        remarks = images[0].framing.remarks(images[0].traits + images[1].traits, sum(map(len, parts)))
        if skipped:
            names = ", ".join(self.broken[:3]) + ", ..." * (skipped > 3)
            are = f"{skipped} of {whole} images {'is' if skipped == 1 else 'are'} damaged and skipped"
            remarks.append(f"{are} (data.on_corrupt=skip): {names}")
        return Splits(*parts, how, (*remarks, *notes))

    def _decoded(self, part: Encoded) -> Decoded:
        x = torch.empty(len(part), *self.shape, dtype=torch.uint8)
        good, survey = self._good(part, Survey.of(each(partial(part.look, into=x), len(part))))
        return Decoded(good, x if good is part else x[[n for n in range(len(part)) if n not in survey.broken]])

    def _surveyed(self, part: Encoded) -> Encoded:
        stamp = f"{part.framing!r} {part.framing.background} {part.framing.max_pixels} {len(part)} ".encode()
        look = telling(part.look, len(part))
        return self._good(part, remembered(stamp + part.source.stamp(), lambda: Survey.of(each(look, len(part)))))[0]

    def _good(self, part: Encoded, survey: Survey) -> tuple[Encoded, Survey]:
        """The images that can be decoded; the others are refused unless they are to be skipped."""
        if not survey.broken:
            part.traits = survey.traits
            return part, survey
        (first, why), others = min(survey.broken.items()), len(survey.broken) - 1
        if len(survey.broken) == len(part) and self.on_corrupt == "skip":
            where = f"{part.source.place(first)} ({why})"
            raise ValueError(f"{where} of a split cannot be decoded, which leaves it empty: repair it, or add images")
        if self.on_corrupt == "refuse":
            raise part.unreadable(first, why, f", and {others} more of {len(part)}" if others else "")
        self.broken += [os.path.basename(part.source.place(number)) for number in sorted(survey.broken)]
        return part.take([n for n in range(len(part)) if n not in survey.broken], survey.traits), survey


def each(function: Callable[[int], Result], count: int) -> list[Result]:
    """function(0), ..., function(count - 1): by threads, unless in a worker process of a loader."""
    run = max(1, min(256, count // 64))  # a thread's task: one image alone costs less than to hand it over

    def part(first: int) -> list[Result]:
        return [function(index) for index in range(first, min(first + run, count))]

    if get_worker_info() is not None:
        return [result for first in range(0, count, run) for result in part(first)]
    with ThreadPoolExecutor() as pool:
        return [result for results in pool.map(part, range(0, count, run)) for result in results]


def hold_out(keys: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Numbers of the items to train on and of those held out: nothing but its own key decides about an item.

    Where that would leave a split empty, as in small sets, the item nearest to the border goes there.

    Raises ValueError for fewer than two items.
    """
    digests = [hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest() for key in keys]
    places = [int.from_bytes(digest, "big") / 2**64 for digest in digests]
    if len(keys) < 2:
        raise ValueError(f"data.held_out_fraction={fraction} of {len(keys)} images leaves a split empty: add another")
    order = sorted(places)
    border = min(max(fraction, order[1]), order[-1])
    parts: tuple[list[int], list[int]] = ([], [])
    for number, place in enumerate(places):
        parts[place < border].append(number)
    return parts


def require_fraction(fraction: float) -> None:
    """Raise ValueError if data.held_out_fraction is none."""
    if not 0 < fraction < 1:
        raise ValueError(f"data.held_out_fraction={fraction} must lie between 0 and 1")
