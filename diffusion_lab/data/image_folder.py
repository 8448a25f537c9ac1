"""Any folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELD_OUT_FOLDERS = ("held_out", "val", "test")
MODES = {1: "L", 3: "RGB"}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class ImageFolder(DataModule):
    """All png, jpg, jpeg, webp and bmp files below `root`, cropped to the centre and resized to `shape`.

    Sub-folders `train` and one of `held_out`, `val`, `test` are the splits if they exist; otherwise the hash
    of its relative name decides whether a file is held out, so that adding files moves none. The label is the
    index of the first folder below the split, in alphabetical order. A set that takes at most
    `memory_limit_mb` (MiB) decoded is kept in memory; a larger one is decoded by `num_workers` processes.

    Raises FileNotFoundError for a missing or empty folder, ValueError for a file that is no 8-bit image.
    """

    def __init__(
        self,
        *,
        root: str,
        held_out_fraction: float = 0.1,
        memory_limit_mb: int = 2048,
        num_workers: int = 4,
        shape: tuple[int, ...] = (3, 64, 64),
        grey_levels: int | None = 256,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            shape=shape,
            grey_levels=grey_levels,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            flip=flip,
            seed=seed,
        )
        if min(num_workers, memory_limit_mb) < 0:
            raise ValueError("data.num_workers and data.memory_limit_mb must not be negative")
        if len(self.shape) != 3 or self.shape[0] not in MODES:
            raise ValueError(f"data.shape={list(self.shape)} must be [1 or 3, height, width]")
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"data.held_out_fraction={held_out_fraction} must lie between 0 and 1")
        self.root, self.held_out_fraction = Path(root).expanduser(), held_out_fraction
        self.memory_limit = memory_limit_mb * 2**20
        self.lazy_workers = num_workers

    def load(self) -> Splits:
        train, held_out, how = self._divided()
        classes = sorted({name for _, name in train + held_out})
        in_memory = (len(train) + len(held_out)) * int(np.prod(self.shape)) <= self.memory_limit
        self.num_workers = 0 if in_memory else self.lazy_workers
        sets = []
        for part in (train, held_out):
            labels = torch.tensor([classes.index(name) for _, name in part])
            files = ImageFiles([path for path, _ in part], labels, self.shape)
            sets.append(files.in_memory() if in_memory else files.verified())
        return Splits(*sets, how)

    def _divided(self) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]], str]:
        """(path, class name) of both splits, and how they came about."""
        held_out = next((name for name in HELD_OUT_FOLDERS if (self.root / name).is_dir()), None)
        if held_out is not None and (self.root / "train").is_dir():
            return find(self.root / "train"), find(self.root / held_out), f"folders train and {held_out}"
        parts: tuple[list, list] = ([], [])
        for path, name in find(self.root):
            parts[_share(path.relative_to(self.root)) < self.held_out_fraction].append((path, name))
        if not all(parts):
            raise ValueError(
                f"data.held_out_fraction={self.held_out_fraction} of {sum(map(len, parts))} images in "
                f"{self.root} leaves a split empty: change it, or make sub-folders train and held_out"
            )
        return *parts, f"{self.held_out_fraction} held out by hash of the file name"


class ImageFiles(Dataset):
    """Images decoded when asked for: `__getitems__` gives (uint8 (B, C, H, W), labels (B,))."""

    def __init__(self, paths: list[Path], labels: Tensor, shape: tuple[int, ...]) -> None:
        self.paths, self.labels, self.shape = paths, labels, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return decode(self.paths[index], self.shape), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        decoded = [decode(self.paths[i], self.shape) for i in indices]
        return torch.stack(decoded), self.labels[torch.as_tensor(indices)]

    def in_memory(self) -> InMemory:
        """All images decoded now."""
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(lambda path: decode(path, self.shape), self.paths))
        return InMemory(torch.stack(decoded), self.labels)

    def verified(self) -> ImageFiles:
        """Itself, once the header of every file has been read."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(read_header, self.paths))
        return self


def find(folder: Path) -> list[tuple[Path, str]]:
    """Images below `folder`, sorted, with the name of their first sub-folder ("" if none), without dot-files.

    Raises FileNotFoundError if the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root: {folder} is not a folder; set data.root to a folder of images")
    images = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in images if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise FileNotFoundError(f"data.root: no image ({', '.join(SUFFIXES)}) in {folder}; set data.root")
    return [(folder / path, path.parts[0] if len(path.parts) > 1 else "") for path in found]


def read_header(path: Path) -> None:
    """Raise ValueError if `path` does not begin like an 8-bit image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            _refuse_deep(image.mode)
    except Exception as error:  # PIL's plugins raise whatever their parsers raise
        raise _unreadable(path, error) from error


def decode(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The file as uint8 (C, H, W): upright, largest centred crop of that aspect, bicubic with antialiasing.

    Raises ValueError naming the file if it is damaged or not of 8 bits.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        with Image.open(path) as image:
            _refuse_deep(image.mode)
            upright = ImageOps.exif_transpose(image).convert(MODES[channels])
        pixels = np.array(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC))
    except Exception as error:  # PIL's plugins raise whatever their parsers raise
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)


def _refuse_deep(mode: str) -> None:
    if mode not in EIGHT_BIT:  # PIL would clip 16-bit values at 255 without a word
        raise ValueError(f"pixel mode {mode}")


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no readable 8-bit image ({error}): repair it or move it out of data.root")


def _share(relative: Path) -> float:
    """A number in [0, 1) that only the file name decides."""
    digest = hashlib.blake2b(relative.as_posix().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
