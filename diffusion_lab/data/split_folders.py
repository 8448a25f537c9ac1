"""Which folders of a data set are its training and its held-out split, by their names."""

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
"""Names of split folders, in upper or lower case; of several held-out ones the first of this row is taken."""

Folder = tuple[str, ...]
"""A folder by the names on the way from the root."""


def find_splits(root: Path, found: Found) -> list[Folder]:
    """The training and the held-out folder below a root: [] or [training] where there is no such pair.

    A folder that holds all images is looked into.

    Raises ValueError where they cannot be told.
    """
    above: Folder = ()
    while True:
        tops = found.tops(above)
        names = choose(root.joinpath(*above), tops)
        if names or len(tops) != 1 or any(len(path.parts) == len(above) + 1 for path in found.paths):
            break
        above = (*above, tops[0])
    inside = [found.tops((*above, top)) for top in tops]
    if not names and len(tops) > 1 and all(is_pair(parts) for parts in inside):
        raise ValueError(
            f"data.root: {root} has {' and '.join(inside[0])} inside of {', '.join(tops[:4])}: put the splits first, "
            f"as in {inside[0][0]}/{tops[0]}, or set data.root={root.joinpath(*above, tops[0])}"
        )
    return [(*above, name) for name in names]


def choose(root: Path, tops: Sequence[str]) -> list[str]:
    """Which of the folders `tops` in the folder `root` are the splits: [] or [training] where there is no pair.

    Raises ValueError where they cannot be told: two for training, one beside it that is no split, or none for training.
    """
    train, held_out = parts(tops, whole=True)
    if not (train and held_out) and all(parts(tops, whole=False)):
        train, held_out = parts(tops, whole=False)
    known = f"the held-out folder may be called {', '.join(HELD_OUT)}"
    if len(train) > 1:
        raise ValueError(
            f"data.root: {root} has {len(train)} folders for training, {', '.join(train)}: keep one, "
            f"or set data.root={root / train[0]}"
        )
    others = [name for name in tops if name not in (*train, *held_out)]
    if train and others:
        raise ValueError(
            f"data.root: {root} has {train[0]}/ beside {', '.join(others[:4])}: {known}; "
            f"rename or move the folder ({train[0]} too if it is a class), or set data.root={root / train[0]}"
        )
    if len(held_out) > 1 and not train and not others:
        raise ValueError(f"data.root: {root} has {', '.join(held_out)}, but none of {', '.join(TRAIN)}: rename one")
    return [*train, *held_out[:1]] if train else []


def parts(tops: Sequence[str], whole: bool) -> tuple[list[str], list[str]]:
    """Names for training, and held-out ones, the first in HELD_OUT first: as a `whole`, or as a word of the name.

    train2017, test_set, trainA and "Training Images" have such words.
    """
    words = {name: [name.lower().replace("-", "_").replace(" ", "_")] if whole else words_of(name) for name in tops}
    train = [name for name in tops if not {*words[name]}.isdisjoint(TRAIN)]
    places = {name: [HELD_OUT.index(word) for word in words[name] if word in HELD_OUT] for name in tops}
    return train, sorted((name for name in tops if places[name] and name not in train), key=lambda n: min(places[n]))


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_pair(tops: Sequence[str]) -> bool:
    """Whether folders are one for training and held-out ones, and nothing else."""
    train, held_out = parts(tops, whole=True)
    return len(train) == 1 and bool(held_out) and len(tops) == 1 + len(held_out)
