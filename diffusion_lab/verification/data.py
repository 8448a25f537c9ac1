"""Checks of data sets: range, shape, labels, disjoint splits, and an order that a seed determines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.verification.check import Chart, Check, Finding, largest

MANY = 8_000
"""Items of a split that are compared with the other split."""


def check_data(make: Callable[[int], DataModule]) -> Iterator[Finding]:
    """Yield the checks of the data modules that `make` returns for a seed, and their charts."""
    data = make(0)
    try:
        splits = data.splits
    except ValueError as error:
        yield Check(f"refused: {error}", 1.0, 0.0)
        return
    counts = {name: len(getattr(splits, name)) for name in ("train", "held_out")}
    for name, count in counts.items():
        yield Check(f"items of {name}", count, 1, 0.0, ">=")
        yield from check_items(data, name)
    yield from check_splits(data)
    yield from check_order(make)
    yield from check_loading(data)
    yield from charts(data)


def check_items(data: DataModule, split: str) -> Iterator[Check]:
    """Floats of the declared shape, in [0, 1] where there are grey levels; labels are classes 0, 1, ..."""
    x, labels = data.images(split, MANY), data.labels(split, MANY)
    yield Check(f"{split}: items of another shape than data.shape", int(tuple(x.shape[1:]) != tuple(data.shape)))
    yield Check(f"{split}: items that are not float32", int(x.dtype != torch.float32))
    yield Check(f"{split}: values that are not finite", int((~x.isfinite()).sum()))
    if data.grey_levels is not None:
        yield Check(f"{split}: smallest value", x.min().item(), 0.0, 0.0, ">=")
        yield Check(f"{split}: largest value", x.max().item(), 1.0, 0.0, "<=")
        steps = x * (data.grey_levels - 1)
        if data.splits.train.limits[1] == data.grey_levels - 1:  # stored as integers
            yield Check(f"{split}: values between grey levels", largest(steps - steps.round()), 0.0, 1e-3)
    yield Check(f"{split}: standard deviation of the values", x.std().item(), 1e-3, 0.0, ">=")
    yield Check(f"{split}: items without a label", len(x) - len(labels))
    yield Check(f"{split}: labels that are not whole numbers", int(labels.is_floating_point()))
    yield Check(f"{split}: smallest label", labels.min().item(), 0, 0.0, ">=")
    if data.class_names:
        yield Check(f"{split}: largest label", labels.max().item(), len(data.class_names) - 1, 0.0, "<=")
    again = data.images(split, MANY)
    yield Check(f"{split}: read again - at first", largest(again - x))
    part = data.images(split, min(5, len(x) - 1), first=1)
    yield Check(f"{split}: a part - the whole", largest(part - x[1 : 1 + len(part)]))


def check_splits(data: DataModule) -> Iterator[Check]:
    """No held-out item is among the training items, and labels of both are the same classes."""
    train, held_out = (digests(data.images(split, MANY)) for split in ("train", "held_out"))
    yield Check("held-out items that are training items too", len([one for one in held_out if one in set(train)]))
    repeated = 1 - len(set(train)) / len(train)
    yield Check("share of training items that are repeated", repeated, 0.5, 0.0, "<=")
    classes = [set(data.labels(split, MANY).tolist()) for split in ("train", "held_out")]
    yield Check("held-out classes without a training item", len(classes[1] - classes[0]))


def digests(x: Tensor) -> list[bytes]:
    """What tells items (N, ...) apart, to 16 bits."""
    rounded = (x.flatten(1).double() * 2**16).round().to(torch.int32).numpy()
    return [row.tobytes() for row in rounded]


def check_order(make: Callable[[int], DataModule]) -> Iterator[Check]:
    """Batches have the declared size; a seed determines them, and an epoch has each item once."""
    orders = []
    for seed in (0, 0, 1):
        data = make(seed)
        data.setup("fit")
        size, batches = data.size("train"), iter(data.batches)
        order: list[int] = []
        while len(order) < min(size, MANY) + data.batch_size:
            order += (batch := list(next(batches)))
        orders.append(order)
    yield Check("items of a batch", len(batch), data.batch_size)
    yield Check("places at which the same seed has another item", sum(a != b for a, b in zip(*orders[:2], strict=True)))
    differ = sum(a != b for a, b in zip(*orders[1:], strict=True)) / len(order)
    yield Check("share of places at which another seed has another item", differ, 0.5, 0.0, ">=")
    epoch = orders[0][: min(size, MANY)]
    yield Check("items that come twice in an epoch", len(epoch) - len(set(epoch)))


def check_loading(data: DataModule) -> Iterator[Check]:
    """How fast batches come; reported."""
    data.setup("fit")
    loader = iter(data.train_dataloader())
    next(loader)
    begin, items = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.5:
        items += len(next(loader)[0])
    yield Check("training items per second", items / (time.perf_counter() - begin), tolerance=None)


def charts(data: DataModule) -> Iterator[Chart]:
    """Histograms of values and of labels."""
    values, labels = {}, {}
    for split in ("train", "held_out"):
        x, y = data.images(split, MANY), data.labels(split, MANY)
        low, high = (0.0, 1.0) if data.grey_levels is not None else (x.min().item(), x.max().item())
        bins = min(data.grey_levels or 32, 32)
        shares = torch.histc(x.flatten(), bins, low, high) / x.numel()
        width = (high - low) / bins
        values[split] = [(low + (k + 0.5) * width, share) for k, share in enumerate(shares.tolist())]
        counts = torch.bincount(y.clamp(min=0))[:64] / len(y)
        labels[split] = list(enumerate(counts.tolist()))
    yield Chart("values", "value", "share of the values", values)
    yield Chart("labels", "label", "share of the items", labels)
