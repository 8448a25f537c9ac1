"""Embeddings of the noise level (sinusoidal or Fourier features, then an MLP) and of class labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from diffusion_lab.network.layers import linear
from diffusion_lab.ranges import Count, NonNegative, checked


def sinusoidal(t: Tensor, dimension: int, period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of t, with frequencies that decrease geometrically from 1 to 1/period.

    [sin(w_0 t) ... sin(w_{h-1} t), cos(w_0 t) ... cos(w_{h-1} t)],  w_k = period^(-k/(h-1)),  h = dimension/2
    (official code of Ho et al. 2020; other programs divide by h, or put the cosines first).
    Shapes: (B,) -> (B, dimension), in the precision of t.
    """
    half = dimension // 2
    index = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = t[:, None] * torch.exp(index * -(math.log(period) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierWaves(nn.Module):
    """Gaussian Fourier features of t: sines and cosines at random frequencies, which are saved but not trained.

    [sin(2 pi w_1 t) ... sin(2 pi w_h t), cos(2 pi w_1 t) ... cos(2 pi w_h t)],  w ~ N(0, scale^2),  h = dimension/2
    (Tancik et al. 2020; Song et al. 2021, appendix H: scale 16, t = log sigma).
    Shapes: (B,) -> (B, dimension), in the precision of the frequencies, at least float32.
    """

    def __init__(self, dimension: int, scale: float) -> None:
        super().__init__()
        precision = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.frequencies = nn.Parameter(scale * torch.randn(dimension // 2, dtype=precision), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierWaves:
        # A network cast to bfloat16 must keep its frequencies: rounding them would change the angles by a radian.
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= 4 else tensor.to(moved.device)

        return super()._apply(kept, recurse)


class LabelEmbedding(nn.Embedding):
    """A learned vector for each label 0 ... classes - 1 and for the null label `classes`.

    Initialised from N(0, 1) (Dhariwal & Nichol 2021, official code), or to 0.  Shapes: (B,) integers -> (B, width).
    Raises ValueError for less than one class.
    """

    @checked
    def __init__(self, classes: Count, width: Count, start_at_zero: bool = False) -> None:
        super().__init__(classes + 1, width)
        self.classes = classes
        if start_at_zero:
            nn.init.zeros_(self.weight)


class OneHotEmbedding(nn.Module):
    """W sqrt(classes) e_label + b, with the null label `classes` as the zero vector; Karras et al. 2022, official code.

    Shapes: (B,) integers -> (B, width).  Raises ValueError for less than one class.
    """

    @checked
    def __init__(self, classes: Count, width: Count) -> None:
        super().__init__()
        self.classes, self.dense = classes, linear(classes, width)

    def forward(self, label: Tensor) -> Tensor:
        one_hot = F.one_hot(label.long(), self.classes + 1)[:, :-1]
        return self.dense(one_hot.to(self.dense.weight.dtype) * math.sqrt(self.classes))


class AugmentationEmbedding(nn.Module):
    """A linear map without bias of augmentation labels, so that no augmentation is zero; Karras et al. 2022, F.2.

    scale: initial variance scale; 0: zero.  Shapes: (B, labels) -> (B, width).
    """

    @checked
    def __init__(self, labels: Count, width: Count, scale: NonNegative = 1.0) -> None:
        super().__init__()
        self.dense = nn.Linear(labels, width, bias=False)
        nn.init.xavier_uniform_(self.dense.weight, gain=math.sqrt(scale))

    def forward(self, augmentation: Tensor) -> Tensor:
        return self.dense(augmentation.to(self.dense.weight.dtype))


def augmented(features: Tensor, embedding: AugmentationEmbedding | None, augmentation: Tensor | None) -> Tensor:
    """Features (B, width) of the noise level plus those of augmentation labels (B, labels), None for no augmentation.

    Raises ValueError for labels of a network without an embedding of them.
    """
    if augmentation is None:
        return features
    if embedding is None:
        raise ValueError("this network was built without augmentation labels: give it augmentation=9")
    return features + embedding(augmentation)


def embedded(table: LabelEmbedding | OneHotEmbedding | None, label: Tensor | None) -> Tensor | None:
    """The embeddings (B, width) of labels (B,); None for an unconditional network, whose table is None."""
    check_label(None if table is None else table.classes, label)
    return None if table is None else table(label)


def check_label(classes: int | None, label: Tensor | None) -> None:
    """Raise ValueError if a class-conditional network gets no label, or an unconditional one gets a label."""
    if classes is None and label is not None:
        raise ValueError("this network was built without classes: leave out label")
    if classes is not None and label is None:
        raise ValueError(f"this network was built with {classes} classes: give each image a label")


class TimeEmbedding(nn.Module):
    """Embedding of the noise level, silu(W_2 silu(W_1 waves(t))): Ho et al. 2020, appendix B.

    With `classes` a label embedding is added before the last silu (Dhariwal & Nichol 2021, section 3), or with
    `one_hot` a `OneHotEmbedding` to waves(t); with `augmentation`, that of so many augmentation labels to waves(t)
    (both Karras et al. 2022, official code).

    waves: (B,) -> (B, dimension), by default `sinusoidal`.
    The last silu is computed once here instead of in every block that uses the embedding.
    Shapes: (B,), (B,), (B, augmentation) -> (B, width). Raises ValueError unless `dimension` is even and at least 4.
    """

    @checked
    def __init__(
        self,
        dimension: Annotated[int, Ge(4), MultipleOf(2)],
        width: Count,
        waves: nn.Module | None = None,
        classes: Count | None = None,
        one_hot: bool = False,
        augmentation: Count | None = None,
    ) -> None:
        super().__init__()
        self.waves = waves or partial(sinusoidal, dimension=dimension)
        self.dense1 = linear(dimension, width)
        self.dense2 = linear(width, width)
        self.labels = classes and (OneHotEmbedding(classes, dimension) if one_hot else LabelEmbedding(classes, width))
        self.one_hot = one_hot
        self.augmentation = augmentation and AugmentationEmbedding(augmentation, dimension)

    def forward(self, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        # At least float32: bfloat16 cannot distinguish levels 999 and 1000.
        weights = self.dense1.weight.dtype
        waves = self.waves(t.to(torch.promote_types(weights, torch.float32)))
        of_label = embedded(self.labels, label)
        features = augmented(waves.to(weights), self.augmentation, augmentation)
        if self.one_hot and of_label is not None:
            features, of_label = features + of_label, None
        h = self.dense2(F.silu(self.dense1(features)))
        return F.silu(h if of_label is None else h + of_label)
