"""Any folder of images."""

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
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source, each, hold_out, require_fraction
from diffusion_lab.data.image_file import suffixes
from diffusion_lab.data.split_folders import Folder, find_splits

Image = tuple[Path, str]
"""Path of an image below the root, and the name of its class."""


@dataclass(kw_only=True, eq=False)
class ImageFolder(EncodedImages):
    """All images below `root` that Pillow reads, cropped to the centre and resized to `shape` (bicubic).

    A sub-folder `train` beside a held-out one is a split, as is the other (split_folders.py); without such a pair the
    hash of its relative name decides whether a file is held out, so that adding files moves none.  The label is the
    index of the first folder below the split, in alphabetical order.  Links are followed; hidden files are left out.

    Raises FileNotFoundError for a missing or empty folder, ValueError for a file that is no 8-bit image and for
    folders beside `train` that are no splits.
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
        train, held_out, how, notes = self._divided()
        classes = sorted({name for _, name in train + held_out})
        if self.conditional and "" in classes:
            loose = sum(not name for _, name in train + held_out)
            raise ValueError(
                f"data.conditional=true: the class of an image is its folder, and {loose} of "
                f"{len(train + held_out)} images lie in none: move them into folders named after their classes"
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
        return self.divided(*parts, how, notes)

    def _divided(self) -> tuple[list[Image], list[Image], str, list[str]]:
        """(path below the folder, class name) of both splits, how they came about, and what was left out."""
        found = find(self.folder)
        splits = find_splits(self.folder, found)
        names = ["/".join(split) for split in splits]
        chosen = [found.below(split) for split in splits]
        if len(chosen) == 2:
            train, held_out = chosen
            how = f"folders {' and '.join(names)}"
        else:
            images = chosen[0] if chosen else found.below(())
            parts = hold_out([path.as_posix() for path, _ in images], self.held_out_fraction)
            train, held_out = ([images[number] for number in part] for part in parts)
            how = f"{self.held_out_fraction} held out by hash of the file name"
            how += f" in folder {names[0]}, which stands alone" if names else ""
        left_out = found.left_out + Counter({
            f"outside {' and '.join(names)}": len(found.paths) - len(train) - len(held_out)
        })  # fmt: skip
        return train, held_out, how, described(left_out)


@dataclass
class Found:
    """Images below a root, sorted, as paths from there, and how many files were left out, by reason."""

    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def tops(self, folder: Folder) -> list[str]:
        """Folders directly below a folder that hold an image."""
        return sorted({name for _, name in self.below(folder) if name})

    def below(self, folder: Folder) -> list[Image]:
        """The images in a folder, each with its class: the name of the first folder below that, "" if there is none."""
        depth = len(folder)
        chosen = [path for path in self.paths if path.parts[:-1][:depth] == folder]
        return [(path, path.parts[depth] if len(path.parts) > depth + 1 else "") for path in chosen]


def find(root: Path) -> Found:
    """Everything below the root, links followed.

    Raises FileNotFoundError if the folder does not exist or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: {root} is not a folder; set data.root to a folder of images")
    found, readable = Found(), suffixes()
    for entry in walk(str(root), found.left_out, (os.path.realpath(root),)):
        path = Path(entry.path).relative_to(root)
        if not entry.is_file():
            found.left_out["broken links"] += 1
        elif path.suffix.lower() not in readable:
            found.left_out[path.suffix.lower() or "without suffix"] += 1
        else:
            found.paths.append(path)
    found.paths.sort()
    if not found.paths:
        others = "".join(f" ({line})" for line in described(found.left_out))
        raise FileNotFoundError(f"data.root: no image that Pillow reads in {root}{others}; set data.root")
    return found


def walk(folder: str, left_out: Counter[str], above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Files below a folder; what is hidden, and links back to one of the folders `above`, are counted and left out."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif not entry.is_dir():
                yield entry
            elif (real := os.path.realpath(entry.path)) in above:
                left_out["links to a folder above"] += 1
            else:
                yield from walk(entry.path, left_out, (*above, real))


def described(left_out: Counter[str]) -> list[str]:
    """ "30 files left out: .txt 20, .xyz 10", if there is anything to tell."""
    reasons = [(why, count) for why, count in left_out.most_common() if count]
    words = ", ".join(f"{why} {count}" for why, count in reasons)
    return [f"{sum(count for _, count in reasons)} files left out: {words}"] if reasons else []


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

    def take(self, indices: Sequence[int]) -> Files:
        return Files(self.folder, [self.paths[index] for index in indices])

    def stamp(self) -> bytes:
        found = hashlib.sha256(os.fsencode(os.path.realpath(self.folder)))
        for line in each(self._state, len(self)):
            found.update(line)
        return found.digest()

    def _state(self, index: int) -> bytes:
        state = (self.folder / self.paths[index]).stat()
        return f"{self.key(index)} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape")
