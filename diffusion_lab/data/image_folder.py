"""A folder of images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source, hold_out, parallel_map
from diffusion_lab.data.image_file import suffixes
from diffusion_lab.data.split_folders import Folder, find_splits
from diffusion_lab.ranges import Fraction

Image = tuple[Path, str]
"""Path of an image relative to the root, and the name of its class."""


@dataclass(kw_only=True, eq=False)
class ImageFolder(EncodedImages):
    """All images below `root` that Pillow reads, centre-cropped and resized to `shape` (bicubic).

    If `root` has a folder `train` and a held-out one, such as `val`, these are the splits (split_folders.py).
    Otherwise files are held out by the hash of their relative path, so that new files do not change the split of
    others.  The label is the index of the first folder below the split, in alphabetical order.  Links are followed;
    hidden files are skipped.

    Raises FileNotFoundError for a missing or empty folder, ValueError for a file that is not an 8-bit image and for
    a folder next to `train` that is not a split.
    """

    root: str
    held_out_fraction: Fraction = 0.1

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    def load(self) -> Splits:
        train, held_out, how, notes = self._split()
        classes = sorted({name for _, name in train + held_out})
        if self.conditional and "" in classes:
            loose = sum(not name for _, name in train + held_out)
            raise ValueError(
                f"data.conditional=true: the class of an image is its folder, and {loose} of "
                f"{len(train + held_out)} images are in none: move them into folders named after their classes"
            )
        self.class_names = classes
        numbers = {name: number for number, name in enumerate(classes)}
        parts = (
            Encoded(
                Files(self.folder, [path for path, _ in part]),
                torch.tensor([numbers[name] for _, name in part]),
                self.framing(),
            )
            for part in (train, held_out)
        )
        return self.make_splits(*parts, how, notes)

    def _split(self) -> tuple[list[Image], list[Image], str, list[str]]:
        """Return (path, class name) of both splits, how they were split, and a note on skipped files."""
        found = find(self.folder)
        splits = find_splits(self.folder, found)
        names = ["/".join(split) for split in splits]
        chosen = [found.images_in(split) for split in splits]
        if len(chosen) == 2:
            train, held_out = chosen
            how = f"folders {' and '.join(names)}"
        else:
            images = chosen[0] if chosen else found.images_in(())
            parts = hold_out([path.as_posix() for path, _ in images], self.held_out_fraction)
            train, held_out = ([images[number] for number in part] for part in parts)
            how = f"{self.held_out_fraction} held out by hash of the file name"
            how += f" in folder {names[0]}, the only split" if names else ""
        skipped = found.skipped + Counter({
            f"outside {' and '.join(names)}": len(found.paths) - len(train) - len(held_out)
        })  # fmt: skip
        return train, held_out, how, skipped_note(skipped)


@dataclass
class Found:
    """Sorted paths of the images below a root, relative to it, and the number of skipped files by reason."""

    paths: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def subfolders(self, folder: Folder) -> list[str]:
        """Return the names of the folders directly in a folder that contain an image."""
        return sorted({name for _, name in self.images_in(folder) if name})

    def images_in(self, folder: Folder) -> list[Image]:
        """Return the images below a folder, each with its class: the folder directly in `folder`, or ""."""
        depth = len(folder)
        chosen = [path for path in self.paths if path.parts[:-1][:depth] == folder]
        return [(path, path.parts[depth] if len(path.parts) > depth + 1 else "") for path in chosen]


def find(root: Path) -> Found:
    """Return the images below the root, following links.

    Raises FileNotFoundError if the folder does not exist or contains no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: {root} is not a folder; set data.root to a folder of images")
    found, readable = Found(), suffixes()
    for entry in walk(str(root), found.skipped, (os.path.realpath(root),)):
        path = Path(entry.path).relative_to(root)
        if not entry.is_file():
            found.skipped["broken links"] += 1
        elif path.suffix.lower() not in readable:
            found.skipped[path.suffix.lower() or "without suffix"] += 1
        else:
            found.paths.append(path)
    found.paths.sort()
    if not found.paths:
        others = "".join(f" ({line})" for line in skipped_note(found.skipped))
        raise FileNotFoundError(f"data.root: no image that Pillow reads in {root}{others}; set data.root")
    return found


def walk(folder: str, skipped: Counter[str], parents: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder; count and skip hidden ones, and links to one of the folders `parents`."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                skipped["hidden"] += 1
            elif not entry.is_dir():
                yield entry
            elif (real := os.path.realpath(entry.path)) in parents:
                skipped["links to a folder above"] += 1
            else:
                yield from walk(entry.path, skipped, (*parents, real))


def skipped_note(skipped: Counter[str]) -> list[str]:
    """Return ["30 files skipped: .txt 20, .xyz 10"], or []."""
    reasons = [(why, count) for why, count in skipped.most_common() if count]
    listed = ", ".join(f"{why} {count}" for why, count in reasons)
    return [f"{sum(count for _, count in reasons)} files skipped: {listed}"] if reasons else []


class Files(Source):
    """Files below a folder, by relative path."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder, self.paths = folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        return self.paths[index].as_posix()

    def location(self, index: int) -> str:
        return str(self.folder / self.paths[index])

    def open(self, index: int) -> BinaryIO:
        return (self.folder / self.paths[index]).open("rb")

    def subset(self, indices: Sequence[int]) -> Files:
        return Files(self.folder, [self.paths[index] for index in indices])

    def stamp(self) -> bytes:
        found = hashlib.sha256(os.fsencode(os.path.realpath(self.folder)))
        for line in parallel_map(self._state, len(self)):
            found.update(line)
        return found.digest()

    def _state(self, index: int) -> bytes:
        state = (self.folder / self.paths[index]).stat()
        return f"{self.key(index)} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape")
