"""Any folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Framing, Source, hold_out, require_fraction

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELD_OUT_FOLDERS = ("held_out", "val", "test")


@dataclass(kw_only=True, eq=False)
class ImageFolder(EncodedImages):
    """All png, jpg, jpeg, webp and bmp files below `root`, cropped to the centre and resized to `shape` (bicubic).

    Sub-folders `train` and one of `held_out`, `val`, `test` are the splits if they exist; otherwise the hash
    of its relative name decides whether a file is held out, so that adding files moves none. The label is the
    index of the first folder below the split, in alphabetical order.

    Raises FileNotFoundError for a missing or empty folder, ValueError for a file that is no 8-bit image.
    """

    root: str
    held_out_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.held_out_fraction)

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    def load(self) -> Splits:
        train, held_out, how = self._divided()
        classes = sorted({name for _, name in train + held_out})
        numbers = {name: number for number, name in enumerate(classes)}
        parts = (
            Encoded(
                Files(self.folder, [path for path, _ in part]),
                torch.tensor([numbers[name] for _, name in part]),
                Framing(self.shape),
            )
            for part in (train, held_out)
        )
        return self.divided(*parts, how, verify=True)

    def _divided(self) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]], str]:
        """(path below the folder, class name) of both splits, and how they came about."""
        held_out = next((name for name in HELD_OUT_FOLDERS if (self.folder / name).is_dir()), None)
        if held_out is not None and (self.folder / "train").is_dir():
            return find(self.folder, "train"), find(self.folder, held_out), f"folders train and {held_out}"
        found = find(self.folder)
        keys = [path.as_posix() for path, _ in found]
        parts = hold_out(keys, self.held_out_fraction, "make sub-folders train and held_out")
        train, held_out = ([found[number] for number in part] for part in parts)
        return train, held_out, f"{self.held_out_fraction} held out by hash of the file name"


class Files(Source):
    """Files below a folder, by their paths from there."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder, self.paths = folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        return self.paths[index].as_posix()

    def place(self, index: int) -> str:
        return str(self.folder / self.paths[index])

    def open(self, index: int) -> BinaryIO:
        return (self.folder / self.paths[index]).open("rb")


def find(root: Path, split: str = "") -> list[tuple[Path, str]]:
    """Images below root / split as paths from `root`, sorted, without dot-files, each with its class name.

    That is the name of the first folder below the split, "" if there is none. Raises FileNotFoundError if the folder
    does not exist or holds no image.
    """
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root: {folder} is not a folder; set data.root to a folder of images")
    images = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in images if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise FileNotFoundError(f"data.root: no image ({', '.join(SUFFIXES)}) in {folder}; set data.root")
    return [(Path(split) / path, path.parts[0] if len(path.parts) > 1 else "") for path in found]
