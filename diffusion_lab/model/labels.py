"""The classes of a conditional model, and the labels of the images of a series."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.ranges import NonNegativeInt, Probability, checked

Label = int | str | Sequence[int | str] | Tensor | None
"""A class by number or name, several that are cycled, "each" for all classes in turn, or None: random labels."""

EACH = "each"
FREQUENCIES = "drawn with the training frequencies"
STREAM = 1
"""Separates the random numbers of labels from those of the noise of the same images."""


class Labels:
    """Labels 0 ... classes - 1, and the null label `classes`.

    Args:
        counts: number of training images of each class.
        names: names of the classes; None: their numbers.
        dropout: probability, per image, of replacing a training label by the null label, so that the network also
            learns the marginal score (Ho & Salimans 2022); 0: no dropout.

    Raises:
        ValueError: for fewer than two classes, names that do not match them, or a dropout outside [0, 1).
    """

    @checked
    def __init__(
        self, counts: Sequence[NonNegativeInt], names: Sequence[str] | None = None, dropout: Probability = 0.1
    ) -> None:
        if len(counts) < 2 or sum(counts) < 1:
            raise ValueError(f"labels.counts={list(counts)} must be the numbers of images of at least two classes")
        self.counts, self.dropout = list(counts), dropout
        self.names = list(map(str, range(len(counts)) if names is None else names))
        if len(self.names) != len(counts) or len(set(self.names)) < len(self.names):
            raise ValueError(f"labels.names={self.names} must be {len(counts)} different names")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def null(self) -> int | None:
        """The null label, if the model is trained with label dropout."""
        return self.classes if self.dropout > 0 else None

    def with_dropout(self, labels: Tensor) -> Tensor:
        """Labels (B,) for a training step, with label dropout by torch's global generator."""
        if self.dropout == 0:
            return labels
        dropped = torch.rand(len(labels), device=labels.device) < self.dropout
        return torch.where(dropped, self.classes, labels)

    def numbers(self, wanted: Label) -> list[int] | None:
        """The requested classes by number; None for random labels.

        Raises:
            ValueError: for an unknown class, with the allowed ones.
        """
        if wanted is None or (isinstance(wanted, str) and wanted == EACH):
            return None if wanted is None else list(range(self.classes))
        several = wanted.tolist() if isinstance(wanted, Tensor | np.ndarray) else wanted
        several = list(several) if isinstance(several, Sequence) and not isinstance(several, str) else [several]
        if not several:
            raise ValueError(f"label=[] is empty: {self.allowed}")
        return [self.number(one) for one in several]

    def number(self, wanted: int | str) -> int:
        """A class by its number or name."""
        if wanted in self.names and isinstance(wanted, str):
            return self.names.index(wanted)
        is_integer = hasattr(wanted, "__index__") and not isinstance(wanted, bool)
        if not is_integer or not 0 <= operator.index(wanted) < self.classes:
            raise ValueError(f"label={wanted} is not a class of this model: {self.allowed}")
        return operator.index(wanted)

    @property
    def allowed(self) -> str:
        """The allowed labels, for messages."""
        numbers = list(map(str, range(self.classes)))
        shown = ", ".join([*self.names[:20], *["..."] * (self.classes > 20)])
        names = "" if self.names == numbers else f" ({shown})"
        return f"choose 0 to {self.classes - 1}{names}, a list of them, or each"

    def of(self, wanted: Label, seed: int, images: Sequence[int]) -> Tensor:
        """Labels (B,) of images of the series `seed`, by their indices in it.

        Several classes are cycled: image i is of the class i modulo their number.  With wanted=None the class of image
        i depends on (seed, i) alone and is drawn with the training frequencies.
        """
        classes = self.numbers(wanted)
        if classes is not None:
            return torch.tensor([classes[image % len(classes)] for image in images])
        integers = (np.random.SeedSequence((seed, i, STREAM)).generate_state(1, np.uint64)[0] for i in images)
        cdf = np.cumsum(self.counts) / sum(self.counts)
        u = np.array([int(integer) / 2**64 for integer in integers])
        return torch.from_numpy(np.searchsorted(cdf, u, side="right").clip(max=self.classes - 1))

    def describe(self, wanted: Label) -> str:
        """The labels of a series in words, for the protocol of an evaluation."""
        classes = self.numbers(wanted)
        if classes is None:
            return FREQUENCIES
        every = classes == list(range(self.classes))
        return "each class in turn" if every else ", ".join(self.names[k] for k in classes)
