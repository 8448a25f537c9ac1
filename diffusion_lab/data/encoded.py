"""Images that lie encoded in files, archives or tables, and are decoded once or when asked for."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory

Result = TypeVar("Result")
MODES = {1: "L", 3: "RGB"}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


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

    def digest(self) -> bytes:
        """sha256 of every key and of all encoded bytes, in order."""
        found = hashlib.sha256()
        for key, content in zip(map(self.key, range(len(self))), each(self._hash, len(self)), strict=True):
            found.update(f"{key}\n".encode() + content)
        return found.digest()

    def _hash(self, index: int) -> bytes:
        with self.open(index) as file:
            return hashlib.sha256(file.read()).digest()


@dataclass(frozen=True)
class Framing:
    """From an encoded image to uint8 (C, H, W): upright, cropped to the centre in whole pixels, then resized.

    shape: (C, H, W), C = 1 (grey) or 3.  crop: side of the square that is cut out; None cuts out the largest rectangle
    of the aspect H : W.  resampling: PIL's filter of that name; all are antialiased, and none acts on equal sizes.
    """

    shape: tuple[int, ...]
    crop: int | None = None
    resampling: Literal["box", "bilinear", "bicubic", "lanczos"] = "bicubic"

    def __call__(self, file: BinaryIO) -> Tensor:
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        with Image.open(file) as image:
            refuse_deep(image.mode)
            upright = ImageOps.exif_transpose(image).convert(MODES[channels])
        framed = upright.crop(self.box(*upright.size))
        pixels = np.array(framed.resize((width, height), Image.Resampling[self.resampling.upper()]))
        return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge of what is cut out of an image of that size."""
        aspect = self.shape[2] / self.shape[1]
        across = self.crop or max(1, min(width, round(height * aspect)))
        down = self.crop or max(1, min(height, round(width / aspect)))
        if across > width or down > height:
            raise ValueError(f"{width}x{height} pixels, smaller than data.crop={self.crop}")
        left, upper = (width - across) // 2, (height - down) // 2
        return left, upper, left + across, upper + down


class Encoded(Dataset):
    """A source with labels (N,), decoded when asked for: `__getitems__` gives (uint8 (B, C, H, W), labels (B,)).

    In the main process threads decode, in a worker process of a loader only that process. Raises ValueError naming the
    place of an image that is damaged or not of 8 bits.
    """

    def __init__(self, source: Source, labels: Tensor, framing: Framing) -> None:
        self.source, self.labels, self.framing = source, labels.to(torch.int64), framing

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._read(index, self.framing), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        decoded = each(lambda number: self._read(indices[number], self.framing), len(indices))
        return torch.stack(decoded), self.labels[torch.as_tensor(indices)]

    def verify(self) -> None:
        """Read the header of every image."""
        each(lambda index: self._read(index, read_header), len(self))

    def digest(self) -> bytes:
        """sha256 of the framing and of the source."""
        return hashlib.sha256(f"{self.framing} ".encode() + self.source.digest()).digest()

    def _read(self, index: int, reader: Callable[[BinaryIO], Result]) -> Result:
        try:
            with self.source.open(index) as file:
                return reader(file)
        except Exception as error:  # PIL's plugins raise whatever their parsers raise
            raise ValueError(
                f"{self.source.place(index)} is no readable 8-bit image ({error}): repair it or take it out of the set"
            ) from error


class Decoded(InMemory):
    """The images of an encoded set, all decoded now; what identifies them is what identifies that set."""

    def __init__(self, encoded: Encoded) -> None:
        x = torch.empty(len(encoded), *encoded.framing.shape, dtype=torch.uint8)
        for part in torch.arange(len(encoded)).split(4096):
            x[part] = encoded.__getitems__(part.tolist())[0]
        super().__init__(x, encoded.labels)
        self.encoded = encoded

    def digest(self) -> bytes:
        return self.encoded.digest()


@dataclass(kw_only=True, eq=False)
class EncodedImages(DataModule):
    """A data set of encoded images. One that takes at most `memory_limit_mb` (MiB) decoded is kept in memory; a larger
    one is decoded by `num_workers` processes per device.
    """

    shape: tuple[int, ...] = (3, 64, 64)
    memory_limit_mb: int = 2048
    num_workers: int = 4
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_workers, self.memory_limit_mb) < 0:
            raise ValueError("data.num_workers and data.memory_limit_mb must not be negative")
        if len(self.shape) != 3 or self.shape[0] not in MODES:
            raise ValueError(f"data.shape={list(self.shape)} must be [1 or 3, height, width]")

    def divided(self, train: Encoded, held_out: Encoded, how: str, verify: bool = False) -> Splits:
        """The splits, in memory if they are small enough; else as they are, every header read if asked to."""
        if (len(train) + len(held_out)) * math.prod(self.shape) > self.memory_limit_mb * 2**20:
            for part in (train, held_out) if verify else ():
                part.verify()
            return Splits(train, held_out, how)
        self.num_workers = 0
        return Splits(Decoded(train), Decoded(held_out), how)


def each(function: Callable[[int], Result], count: int) -> list[Result]:
    """function(0), ..., function(count - 1): by threads, unless in a worker process of a loader."""
    run = max(1, min(256, count // 64))  # a thread's task: one image alone costs less than to hand it over

    def part(first: int) -> list[Result]:
        return [function(index) for index in range(first, min(first + run, count))]

    if get_worker_info() is not None:
        return [result for first in range(0, count, run) for result in part(first)]
    with ThreadPoolExecutor() as pool:
        return [result for results in pool.map(part, range(0, count, run)) for result in results]


def hold_out(keys: Sequence[str], fraction: float, otherwise: str) -> tuple[list[int], list[int]]:
    """Numbers of the items to train on and of those held out: nothing but its own key decides about an item.

    Raises ValueError if that leaves a split empty, with what to do `otherwise`.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for number, key in enumerate(keys):
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        parts[int.from_bytes(digest, "big") / 2**64 < fraction].append(number)
    if not all(parts):
        raise ValueError(
            f"data.held_out_fraction={fraction} of {len(keys)} images leaves a split empty: change it, or {otherwise}"
        )
    return parts


def require_fraction(fraction: float) -> None:
    """Raise ValueError if data.held_out_fraction is none."""
    if not 0 < fraction < 1:
        raise ValueError(f"data.held_out_fraction={fraction} must lie between 0 and 1")


def refuse_deep(mode: str) -> None:
    """Raise ValueError for PIL modes of more than 8 bits, which PIL would clip at 255 without a word."""
    if mode not in EIGHT_BIT:
        raise ValueError(f"pixel mode {mode}")


def read_header(file: BinaryIO) -> None:
    """Raise an error if the file does not begin like an 8-bit image."""
    from PIL import Image

    with Image.open(file) as image:
        refuse_deep(image.mode)
