"""Convert torch data sets of a user to the form that a DataModule needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from diffusion_lab.data.batches import InMemory, generator, plain_tensor
from diffusion_lab.errors import BadItem

CHECKED = 256  # items of a lazy data set that are checked before training


def as_map_style(data: Any) -> Dataset:
    """Return a data set with `__getitems__`, `labels` and `digest`: the given one if it has them, else a wrapper.

    Items are x or (x, label), x a tensor, an array or a PIL image; a missing label is 0.

    Raises ValueError for a data set that is not map-style, or is empty.
    """
    if all(hasattr(data, name) for name in ("__len__", "__getitems__", "labels", "digest")):
        return data
    lacking = "no len() and no [index]" if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) else ""
    if lacking or isinstance(data, Mapping):
        raise ValueError(
            f"load() returns a {type(data).__name__}, which has {lacking or 'names'}: return Splits(train, held_out) "
            "of map-style data sets, such as torch.utils.data.TensorDataset(images, labels)"
        )
    if not len(data):
        raise ValueError("load() returns an empty data set")
    tensors = _tensors(data)
    if tensors is None:
        return Items(data)
    return InMemory(tensors[0], _labels(tensors[1]) if len(tensors) > 1 else torch.zeros(len(tensors[0])))


def train_and_held_out(data: Any) -> tuple[Dataset, Dataset, str]:
    """Return (train, held_out, how they were split); a tenth of a single data set is held out at random.

    The random split depends on the number of items alone.
    """
    if isinstance(data, tuple) and len(data) != 2:
        raise ValueError(f"load() returns {len(data)} data sets: return two, (train, held_out)")
    if isinstance(data, tuple | list) and len(data) == 2:
        shapes = [tuple(getattr(part, "shape", ())) for part in data]
        if shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                f"load() returns arrays {shapes[0]} and {shapes[1]}, which cannot be train and held_out: "
                "if they are x and labels, return torch.utils.data.TensorDataset(x, labels)"
            )
        return *data, "as given"
    size = len(as_map_style(data))
    if size < 2:
        raise ValueError("load() returns a single item: two are needed, one of them held out")
    order = torch.randperm(size, generator=generator("held out", size)).tolist()
    border = max(1, size // 10)
    train, held_out = (Subset(data, sorted(part)) for part in (order[border:], order[:border]))
    return train, held_out, "a tenth held out at random"


def _tensors(data: Any) -> Sequence[Tensor] | None:
    """Return the tensors of a TensorDataset or a Subset of one; None for other data sets."""
    if type(data) is TensorDataset:
        return data.tensors
    inner = _tensors(data.dataset) if type(data) is Subset else None
    return inner and [tensor[torch.as_tensor(data.indices)] for tensor in inner]


def _labels(values: Any) -> Tensor:
    """Return labels (N,) int64; raises ValueError unless they are one whole number per item."""
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
    """A wrapper of any map-style data set, which reads each item on access, so that random transforms stay random.

    `limits` are the smallest and largest allowed value, known after some items were checked; None allows any.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.limits: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        try:
            item = self.data[int(index)]
        except Exception as error:  # the user's code may raise anything
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
            slack = 0.1 * (self.limits[1] - self.limits[0])  # resizing may overshoot
            if not (self.limits[0] - slack <= low and high <= self.limits[1] + slack):
                raise BadItem(
                    f"item {index} holds values from {low:g} to {high:g}, but those checked before training "
                    f"are between {self.limits[0]:g} and {self.limits[1]:g}: correct or remove it"
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
        """Return the sha256 of dtype, shape and values of every item, in order."""
        found = hashlib.sha256()
        for index in range(len(self)):
            x = self[index][0]
            found.update(f"{x.dtype} {tuple(x.shape)} ".encode() + x.contiguous().numpy().tobytes())
        return found.digest()


def _array(x: Any) -> Tensor:
    """Return x as a tensor, (C, H, W) for a PIL image."""
    if hasattr(x, "getbands"):  # PIL, which need not be installed for tensors
        if x.mode in ("P", "PA"):  # whose pixels are indices of a palette
            x = x.convert("RGBA" if x.has_transparency_data else "RGB")
        pixels = plain_tensor(torch.from_numpy(np.array(x)))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    try:
        if isinstance(x, np.ndarray):
            x = x.astype(x.dtype.newbyteorder("="), copy=False)
        return plain_tensor(torch.as_tensor(x))
    except (TypeError, RuntimeError) as error:
        raise BadItem(f"an item is a {type(x).__name__}: return x or (x, label), x a tensor or an array") from error


def items_to_check(data: Dataset) -> Tensor:
    """Return the items (n, ...) checked before training: all of a data set in memory, else a few, evenly spaced."""
    if isinstance(data, InMemory):
        return data.x
    most = CHECKED if isinstance(data, Items) else 1
    chosen = torch.linspace(0, len(data) - 1, min(most, len(data))).round().long().unique()
    return data.__getitems__(chosen.tolist())[0]
