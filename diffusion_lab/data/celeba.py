"""CelebA, aligned and cropped, the official files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, BinaryIO, Literal
from zipfile import ZipFile

import numpy as np
import torch
from annotated_types import Interval

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source
from diffusion_lab.data.image_folder import Files
from diffusion_lab.data.official import refuse_damaged

IMAGES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt"
HOME = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
PARTS = {"train": "0", "valid": "1", "test": "2"}


@dataclass(kw_only=True, eq=False)
class CelebA(EncodedImages):
    """162,770 train and 19,962 held-out (test; valid: 19,867) faces; Liu et al. 2015 (arXiv:1411.7766).

    Reads <data_dir>/celeba: list_eval_partition.txt, and the 202,599 JPEG files of 178 x 218 pixels in the folder
    img_align_celeba or else in img_align_celeba.zip. Text files and archive are checked against their published md5.

    A central square of `crop` pixels is resized (bilinear, antialiased), as in NCSN (140 -> 32), NCSNv2 (140 -> 64)
    and ScoreSDE (140 -> 64). The first two hold out test, ScoreSDE valid. The label is 1 if list_attr_celeba.txt
    lists the `attribute` for the face, else 0.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one; both name the file.
    """

    data_dir: str
    held_out: Literal["test", "valid"] = "test"
    attribute: str | None = None
    crop: Annotated[int, Interval(ge=1, le=178)] = 140  # the images are 178 pixels wide

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribute is not None:
            self.class_names = (f"not {self.attribute}", self.attribute)
        if self.shape[1] != self.shape[2]:
            raise ValueError(f"data.shape={list(self.shape)} must be square, as the crop is")

    @property
    def folder(self) -> Path:
        return Path(self.data_dir).expanduser() / "celeba"

    def load(self) -> Splits:
        part_of = dict(line.split() for line in self._lines(PARTITION))
        labels, folder, archive = self._labels(), self.folder / IMAGES, self.folder / f"{IMAGES}.zip"
        self._require_images(folder, archive, part_of)
        framing = self.framing(self.crop, "bilinear")
        parts = []
        for part in ("train", self.held_out):
            names = sorted(name for name, number in part_of.items() if number == PARTS[part])
            source = Files(folder, list(map(Path, names))) if folder.is_dir() else Zipped(archive, IMAGES, names)
            parts.append(Encoded(source, torch.tensor([labels.get(name, 0) for name in names]), framing))
        return self.make_splits(*parts, f"official split, train and {self.held_out}")

    def _labels(self) -> dict[str, int]:
        if self.attribute is None:
            return {}
        _, header, *lines = self._lines(ATTRIBUTES)
        if self.attribute not in header.split():
            raise ValueError(
                f"data.attribute={self.attribute} does not exist: choose one of {', '.join(header.split())}"
            )
        column = 1 + header.split().index(self.attribute)
        return {row[0]: int(row[column] == "1") for row in map(str.split, lines)}

    def _lines(self, name: str) -> list[str]:
        if not (self.folder / name).exists():
            raise self._missing(self.folder / name, name)
        refuse_damaged(self.folder / name, digests()[name])
        return (self.folder / name).read_text().splitlines()

    def _require_images(self, folder: Path, archive: Path, names: Iterable[str]) -> None:
        if folder.is_dir():
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
            if absent := next((name for name in names if not sizes.get(name)), None):
                raise self._missing(folder / absent, archive.name)
        elif not archive.exists():
            raise self._missing(folder, archive.name)
        else:
            refuse_damaged(archive, digests()[archive.name])

    def _missing(self, path: Path, name: str) -> FileNotFoundError:
        unpack = f" and unpack it, or move {IMAGES} away" if path.parent != self.folder else ""
        return FileNotFoundError(
            f"{path} is missing or empty: put {name} (md5 {digests()[name]}, from {HOME}) into {self.folder}{unpack}"
        )


class Zipped(Source):
    """Files of one folder in a zip archive, by name."""

    def __init__(self, archive: Path, folder: str, names: list[str]) -> None:
        self.archive, self.folder, self.names = archive, folder, np.array(names)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return str(self.names[index])

    def location(self, index: int) -> str:
        return f"{self.archive}/{self.folder}/{self.key(index)}"

    def open(self, index: int) -> BinaryIO:
        return open_archive(self.archive, os.getpid()).open(f"{self.folder}/{self.key(index)}")

    def subset(self, indices: Sequence[int]) -> Zipped:
        return Zipped(self.archive, self.folder, [self.key(index) for index in indices])

    def stamp(self) -> bytes:
        found = self.archive.stat()
        return f"{found.st_size} {found.st_mtime_ns} {' '.join(self.names)}".encode(errors="surrogateescape")


@cache
def open_archive(archive: Path, pid: int) -> ZipFile:
    """Open an archive once per process: forked processes would share the position in the file."""
    return ZipFile(archive)


def digests() -> dict[str, str]:
    """Return the published md5 of each official file."""
    from torchvision.datasets import CelebA as Official

    return {name: md5 for _, md5, name in Official.file_list}
