"""The classes that a model was trained on, and which of them each image of a series is asked to be."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Label = int | str | Sequence[int | str] | Tensor | None
"""A class by number or name, several that are cycled, "each" for all of them in turn, or None: drawn at random."""

EACH = "each"
FREQUENCIES = "drawn with the training frequencies"
STREAM = 1
"""Sets the draws of labels apart from the noise of the same images."""


class Labels:
    """Labels 0 ... classes - 1, and `classes` for none.

    Args:
        counts: training images of each class.
        names: of the classes; None: their numbers.
        dropout: probability with which a training image's label is dropped, each image's on its own, so that the
            network learns the marginal score, too (Ho & Salimans 2022); 0 drops none.

    Raises:
        ValueError: for fewer than two classes, or names that do not fit them.
    """

    def __init__(self, counts: Sequence[int], names: Sequence[str] | None = None, dropout: float = 0.1) -> None:
        if len(counts) < 2 or min(counts) < 0 or sum(counts) < 1:
            raise ValueError(f"labels.counts={list(counts)} must be the numbers of images of at least two classes")
        self.counts, self.dropout = list(counts), dropout
        self.names = list(map(str, range(len(counts)) if names is None else names))
        if len(self.names) != len(counts) or len(set(self.names)) < len(self.names):
            raise ValueError(f"labels.names={self.names} must name {len(counts)} classes, each by another name")
        if not 0 <= dropout < 1:
            raise ValueError(f"label_dropout={dropout} must lie in [0, 1)")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def null(self) -> int | None:
        """The label of no class, where the network learns it."""
        return self.classes if self.dropout > 0 else None

    def with_dropout(self, labels: Tensor) -> Tensor:
        """Labels (B,) for a training step: each is dropped with probability `dropout`, by torch's global generator."""
        if self.dropout == 0:
            return labels
        dropped = torch.rand(len(labels), device=labels.device) < self.dropout
        return torch.where(dropped, self.classes, labels)

    def numbers(self, wanted: Label) -> list[int] | None:
        """The classes asked for by number; None where each image draws its own.

        Raises:
            ValueError: for one that does not exist, naming those that do.
        """
        if wanted is None or (isinstance(wanted, str) and wanted == EACH):
            return None if wanted is None else list(range(self.classes))
        several = wanted.tolist() if isinstance(wanted, Tensor | np.ndarray) else wanted
        several = list(several) if isinstance(several, Sequence) and not isinstance(several, str) else [several]
        if not several:
            raise ValueError(f"label=[] asks for no class: {self.allowed}")
        return [self.number(one) for one in several]

    def number(self, wanted: int | str) -> int:
        """A class by its number or name."""
        if wanted in self.names and isinstance(wanted, str):
            return self.names.index(wanted)
        whole = hasattr(wanted, "__index__") and not isinstance(wanted, bool)
        if not whole or not 0 <= operator.index(wanted) < self.classes:
            raise ValueError(f"label={wanted} is no class of this model: {self.allowed}")
        return operator.index(wanted)

    @property
    def allowed(self) -> str:
        """What a label may be, in words."""
        numbers = list(map(str, range(self.classes)))
        shown = ", ".join([*self.names[:20], *["..."] * (self.classes > 20)])
        names = "" if self.names == numbers else f" ({shown})"
        return f"give 0 to {self.classes - 1}{names}, a list of them, or each"

    def of(self, wanted: Label, seed: int, images: Sequence[int]) -> Tensor:
        """Labels (B,) of images of the series `seed`, by their numbers in it.

        Several classes are cycled: image i is of the class i modulo their number.  Without a wish image i has a class
        that depends on (seed, i) alone, drawn with the training frequencies.
        """
        classes = self.numbers(wanted)
        if classes is not None:
            return torch.tensor([classes[image % len(classes)] for image in images])
        words = (np.random.SeedSequence((seed, i, STREAM)).generate_state(1, np.uint64)[0] for i in images)
        shares = np.cumsum(self.counts) / sum(self.counts)
        draws = np.array([int(word) / 2**64 for word in words])
        return torch.from_numpy(np.searchsorted(shares, draws, side="right").clip(max=self.classes - 1))

    def describe(self, wanted: Label) -> str:
        """What the images of a series are asked to be, as a protocol says it."""
        classes = self.numbers(wanted)
        if classes is None:
            return FREQUENCIES
        every = classes == list(range(self.classes))
        return "each class in turn" if every else ", ".join(self.names[k] for k in classes)
