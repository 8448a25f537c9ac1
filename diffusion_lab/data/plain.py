"""Plain torch data sets, as a user has them, in the form that a DataModule needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from diffusion_lab.data.batches import InMemory, generator, plain
from diffusion_lab.errors import BadItem

SAMPLE = 256  # items of a lazy set that are looked at beforehand


def with_protocol(data: Any) -> Dataset:
    """The data set as it is if it knows `__getitems__`, `labels` and `digest`; else in a form that does.

    Items are x or (x, label), x a tensor, an array or a PIL image; without a label it is 0.

    Raises ValueError for what is no map-style data set, or an empty one.
    """
    if all(hasattr(data, name) for name in ("__len__", "__getitems__", "labels", "digest")):
        return data
    lacking = "no len() and no [index]" if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) else ""
    if lacking or isinstance(data, Mapping):
        raise ValueError(
            f"load() gives a {type(data).__name__}, which has {lacking or 'names'}: give Splits(train, held_out) of "
            "map-style data sets, such as torch.utils.data.TensorDataset(images, labels)"
        )
    if not len(data):
        raise ValueError("load() gives an empty data set")
    tensors = _tensors(data)
    if tensors is None:
        return Items(data)
    return InMemory(tensors[0], _labels(tensors[1]) if len(tensors) > 1 else torch.zeros(len(tensors[0])))


def in_two(data: Any) -> tuple[Dataset, Dataset, str]:
    """A pair (train, held_out), or one data set of which a tenth is held out, drawn from its size alone; and how."""
    if isinstance(data, tuple) and len(data) != 2:
        raise ValueError(f"load() gives {len(data)} data sets: give two, (train, held_out)")
    if isinstance(data, tuple | list) and len(data) == 2:
        shapes = [tuple(getattr(part, "shape", ())) for part in data]
        if shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                f"load() gives arrays {shapes[0]} and {shapes[1]}, which are no train and held_out of one kind: "
                "if they are x and labels, give torch.utils.data.TensorDataset(x, labels)"
            )
        return *data, "as given"
    size = len(with_protocol(data))
    if size < 2:
        raise ValueError("load() gives a single item: two are needed, one of them held out")
    order = torch.randperm(size, generator=generator("held out", size)).tolist()
    border = max(1, size // 10)
    train, held_out = (Subset(data, sorted(part)) for part in (order[border:], order[:border]))
    return train, held_out, "a tenth held out at random"


def _tensors(data: Any) -> Sequence[Tensor] | None:
    """The tensors behind a TensorDataset or a Subset of one."""
    if type(data) is TensorDataset:
        return data.tensors
    inner = _tensors(data.dataset) if type(data) is Subset else None
    return inner and [tensor[torch.as_tensor(data.indices)] for tensor in inner]


def _labels(values: Any) -> Tensor:
    """Labels (N,) int64; raises ValueError if they are no whole numbers, one an item."""
    labels = torch.as_tensor(values)
    labels = labels.squeeze(1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if (
        labels.dim() != 1
        or labels.is_complex()
        or (labels.is_floating_point() and not (labels == labels.round()).all())
    ):
        raise ValueError(f"labels must be whole numbers (N,), not {labels.dtype} {tuple(labels.shape)}")
    return labels.to(torch.int64)


class Items(Dataset):
    """Any map-style data set, item by item as it gives them: what it draws at random stays random.

    `limits` are the values that its items may have, once a few of them have been looked at; None allows any.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.limits: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        try:
            item = self.data[int(index)]
        except Exception as error:  # of any class: it is the user's
            message = " ".join(f"{type(error).__name__}: {error}".split())
            data, where = self.data, int(index)
            while isinstance(data, Subset):
                data, where = data.dataset, data.indices[where]
            raise BadItem(f"item {where} of the data set {type(data).__name__} cannot be read: {message}") from error
        x, label = (*item, 0)[:2] if isinstance(item, tuple | list) else (item, 0)
        return _array(x), label

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, labels = zip(*map(self.__getitem__, indices), strict=True)
        for index, one in zip(indices, x, strict=True) if self.limits else ():
            low, high = one.min().item(), one.max().item()
            slack = 0.1 * (self.limits[1] - self.limits[0])  # resizing may go a little beyond them
            if not (self.limits[0] - slack <= low and high <= self.limits[1] + slack):
                raise BadItem(
                    f"item {index} holds values from {low:g} to {high:g}, but those looked at before training "
                    f"lie within {self.limits[0]:g} and {self.limits[1]:g}: correct it, or leave it out"
                )
        shapes = sorted({tuple(one.shape) for one in x})
        if len(shapes) > 1:
            raise BadItem(f"items have several shapes, such as {' and '.join(map(str, shapes[:2]))}: resize them")
        try:
            return torch.stack(x), _labels([torch.as_tensor(label).item() for label in labels])
        except (TypeError, RuntimeError) as error:
            raise BadItem(f"labels must be whole numbers, not {labels[0]!r}") from error

    @cached_property
    def labels(self) -> Tensor:
        return torch.cat([self.__getitems__(part.tolist())[1] for part in torch.arange(len(self)).split(1000)])

    def digest(self) -> bytes:
        """sha256 of dtype, shape and values of every item, in order."""
        found = hashlib.sha256()
        for index in range(len(self)):
            x = self[index][0]
            found.update(f"{x.dtype} {tuple(x.shape)} ".encode() + x.contiguous().numpy().tobytes())
        return found.digest()


def _array(x: Any) -> Tensor:
    """A tensor; of a PIL image (C, H, W)."""
    if hasattr(x, "getbands"):  # of PIL, which need not be installed for tensors
        if x.mode in ("P", "PA"):  # whose pixels are numbers of colours
            x = x.convert("RGBA" if x.has_transparency_data else "RGB")
        pixels = plain(torch.from_numpy(np.array(x)))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    try:
        if isinstance(x, np.ndarray):
            x = x.astype(x.dtype.newbyteorder("="), copy=False)
        return plain(torch.as_tensor(x))
    except (TypeError, RuntimeError) as error:
        raise BadItem(f"an item is a {type(x).__name__}: give x or (x, label), x a tensor or an array") from error


def sample(data: Dataset) -> Tensor:
    """Items (n, ...) to look at: all of a set in memory, else a few, evenly spread."""
    if isinstance(data, InMemory):
        return data.x
    most = SAMPLE if isinstance(data, Items) else 1
    chosen = torch.linspace(0, len(data) - 1, min(most, len(data))).round().long().unique()
    return data.__getitems__(chosen.tolist())[0]
