"""Find the training and held-out folder of a data set by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.data.image_folder import Found

TRAIN = ("train", "training")
HELD_OUT = (
    "held_out", "val", "valid", "validation", "eval", "evaluation", "dev", "test", "testing", "heldout", "holdout",
)  # fmt: skip
"""Names of split folders, in any case; of several held-out folders, the first in this order is used."""

Folder = tuple[str, ...]
"""Path of a folder relative to the root, as names."""


def find_splits(root: Path, found: Found) -> list[Folder]:
    """Return [training, held-out] folder below a root, [training] if there is no held-out one, or [].

    If a single folder contains all images, the splits are searched in it.

    Raises ValueError if the splits are ambiguous.
    """
    parent: Folder = ()
    while True:
        folders = found.subfolders(parent)
        names = choose_splits(root.joinpath(*parent), folders)
        if names or len(folders) != 1 or any(len(path.parts) == len(parent) + 1 for path in found.paths):
            break
        parent = (*parent, folders[0])
    inside = [found.subfolders((*parent, name)) for name in folders]
    if not names and len(folders) > 1 and all(is_pair(names) for names in inside):
        raise ValueError(
            f"data.root: {root} has {' and '.join(inside[0])} inside of {', '.join(folders[:4])}: put the splits "
            f"first, as in {inside[0][0]}/{folders[0]}, or set data.root={root.joinpath(*parent, folders[0])}"
        )
    return [(*parent, name) for name in names]


def choose_splits(root: Path, folders: Sequence[str]) -> list[str]:
    """Return the names of the splits among the folders in `root`: [training, held-out], [training] or [].

    Raises ValueError if they are ambiguous: several training folders, a folder next to it that is not a split, or
    only held-out folders.
    """
    train, held_out = split_names(folders, exact=True)
    if not (train and held_out) and all(split_names(folders, exact=False)):
        train, held_out = split_names(folders, exact=False)
    known = f"the held-out folder may be called {', '.join(HELD_OUT)}"
    if len(train) > 1:
        raise ValueError(
            f"data.root: {root} has {len(train)} folders for training, {', '.join(train)}: keep one, "
            f"or set data.root={root / train[0]}"
        )
    others = [name for name in folders if name not in (*train, *held_out)]
    if train and others:
        raise ValueError(
            f"data.root: {root} has {train[0]}/ next to {', '.join(others[:4])}: {known}; "
            f"rename or move the folder ({train[0]} too if it is a class), or set data.root={root / train[0]}"
        )
    if len(held_out) > 1 and not train and not others:
        raise ValueError(f"data.root: {root} has {', '.join(held_out)}, but none of {', '.join(TRAIN)}: rename one")
    return [*train, *held_out[:1]] if train else []


def split_names(folders: Sequence[str], exact: bool) -> tuple[list[str], list[str]]:
    """Return the training and held-out folders, the latter in the order of HELD_OUT.

    A folder matches if its name, or unless `exact` one word of it, is in TRAIN or HELD_OUT: train2017, test_set,
    trainA and "Training Images" have such words.
    """
    words = {name: [name.lower().replace("-", "_").replace(" ", "_")] if exact else words_of(name) for name in folders}
    train = [name for name in folders if not {*words[name]}.isdisjoint(TRAIN)]
    order = {name: min((HELD_OUT.index(word) for word in words[name] if word in HELD_OUT), default=None)
             for name in folders if name not in train}  # fmt: skip
    return train, sorted((name for name in order if order[name] is not None), key=order.get)


def words_of(name: str) -> list[str]:
    """Return the words of a name, in lower case."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_pair(folders: Sequence[str]) -> bool:
    """Whether the folders are one training folder and held-out folders, and no others."""
    train, held_out = split_names(folders, exact=True)
    return len(train) == 1 and bool(held_out) and len(folders) == 1 + len(held_out)
