"""DataModule: the base class of all data sets, from the stored bytes to float batches on the device."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.data import augmentation
from diffusion_lab.data.batches import TrainBatches, shuffled
from diffusion_lab.data.classes import class_counts
from diffusion_lab.data.contract import check_places, check_shape, check_values
from diffusion_lab.data.pairs import read_pairs
from diffusion_lab.data.plain import as_map_style, items_to_check, train_and_held_out
from diffusion_lab.ranges import Count, Levels, Seed, UnitInterval, check_fields

Batch = tuple[Tensor, ...]
"""(x, label), (x, label, labels of the augmentation) with `augment`, (x, label, None, noise) with `pairs`."""
Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Splits:
    """Training and held-out data, how they were split, and notes that are printed for the user.

    Both are map-style data sets with `labels` (N,), `__getitems__(indices) -> (x (B, ...), labels (B,))` and
    `digest() -> bytes`, a hash of the items in their order; or plain torch data sets of x or (x, label).
    """

    train: Dataset
    held_out: Dataset | None = None
    how: str = "as given"
    notes: Sequence[str] = ()


@dataclass(kw_only=True, eq=False)
class DataModule(pl.LightningDataModule, ABC):
    """Batches (x, label): x float32 (B, C, H, W) in [0, 1], x = byte / (grey_levels - 1), or points (B, 2).

    `load` returns integers 0..grey_levels - 1, or floats in [0, 1], which are not scaled again. `grey_levels` is None
    for real numbers without grey levels, such as latents or fields, which are not scaled either.

    `batch_size` is the size of a training batch summed over all ranks, `eval_batch_size` that of a held-out batch on
    one rank. Training batches are endless (see TrainBatches) and resume from a checkpoint. Held-out items come once
    each, in stored order; rank r of W takes items r, r + W, ... Therefore Lightning must not shard them again:
    Trainer(use_distributed_sampler=False).

    With `augment` > 0 training images are augmented, each transformation with this probability, and training batches
    are (x, label, augmentation labels (B, 9)).  With `pairs`, batches of training and validation are the rows (x,
    label, None, noise) of a folder of samples, not mirrored.

    A subclass implements `load()`, and may add fields and change defaults. If it sets `grey_levels`, that is fixed by
    its files and users cannot change it. Raises ValueError for settings that contradict each other or the files.
    """

    shape: tuple[Count, ...]
    grey_levels: Levels | None = 256
    batch_size: Count = 128
    eval_batch_size: Count = 500
    flip: bool = True
    seed: Seed = 0
    conditional: bool = False  # whether the model is conditioned on the labels
    augment: UnitInterval = 0.0
    pairs: str | None = None  # folder of sample.py with noise=true

    num_workers = 0  # a field only in data sets that decode files
    class_names = None  # a sequence of strings if known, after loading
    _floats_in_unit = False
    places = ("data_dir", "root")  # fields that are paths: they may change after training

    def __post_init__(self) -> None:
        super().__init__()
        check_fields(self)
        check_places(self, self.places)
        self.shape = tuple(self.shape)
        if len(self.shape) not in (1, 3):
            raise ValueError(f"data.shape={list(self.shape)} must be [channels,height,width] or [2]")
        stated = next(cls for cls in type(self).__mro__ if "grey_levels" in vars(cls))
        if stated is not DataModule and self.grey_levels != stated.grey_levels:
            fixed = "null" if stated.grey_levels is None else stated.grey_levels
            raise ValueError(f"data.grey_levels={self.grey_levels} must be {fixed} for {type(self).__name__}")
        if self.flip and not self.is_image:
            raise ValueError("data.flip=true mirrors images, but these are points: set data.flip=false")
        augmentation.check(self.augment, self.is_image, self.flip, self.pairs)
        self.position, self._first = 0, None
        self.batches: TrainBatches | None = None
        self._fingerprints: dict[str, str] = {}

    @property
    def is_image(self) -> bool:
        """Whether items are arrays (C, H, W), not vectors."""
        return len(self.shape) == 3

    @abstractmethod
    def load(self) -> Splits:
        """Read the files and split them; called once per process.  A tenth of a single torch data set is held out."""

    @cached_property
    def splits(self) -> Splits:
        """The loaded and checked data sets."""
        name, loaded = type(self).__name__, self.load()
        splits = loaded if isinstance(loaded, Splits) else Splits(loaded)
        splits = splits if splits.held_out is not None else Splits(*train_and_held_out(splits.train), splits.notes)
        splits = replace(splits, train=as_map_style(splits.train), held_out=as_map_style(splits.held_out))
        parts = [items_to_check(splits.train), items_to_check(splits.held_out)]
        for part in parts:
            check_shape(name, self.shape, tuple(part.shape[1:]))
        self._floats_in_unit, notes = check_values(name, self.grey_levels, self.is_image, parts)
        if self.grey_levels is not None:
            splits.train.limits = splits.held_out.limits = (0, 1 if self._floats_in_unit else self.grey_levels - 1)
        return replace(splits, notes=(*splits.notes, *notes))

    @cached_property
    def batched(self) -> tuple[Dataset, Dataset]:
        """The data sets of batches for training and validation: those of `pairs`, or train and held-out data."""
        data, levels = (self.splits.train, self.splits.held_out), None if self._floats_in_unit else self.grey_levels
        return data if self.pairs is None else read_pairs(self.pairs, self.shape, levels)

    def setup(self, stage: str) -> None:
        """Load and check the data; a fit starts at batch 0 unless `load_state_dict` is called afterwards."""
        size = len(self.batched[0]) if stage == "fit" else len(self.splits.train)
        if stage == "fit":
            self.batches = TrainBatches(size, self.batch_size, self.seed, *self._rank_and_world())
            self._seek(0)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.batched[0], batch_sampler=self.batches)

    def val_dataloader(self) -> DataLoader:
        return self._held_out_loader(self.batched[1])

    def test_dataloader(self) -> DataLoader:
        return self._held_out_loader(self.splits.held_out)

    def _held_out_loader(self, data: Dataset) -> DataLoader:
        rank, world = self._rank_and_world()
        order = torch.arange(rank, len(data), world).split(self.eval_batch_size)
        return self._loader(data, batch_sampler=[part.tolist() for part in order])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale a batch to [0, 1] on the device; while training, also mirror or augment and count it."""
        x, label, *noise = batch
        more = (None, *noise) if noise else ()
        if self.trainer is None or not self.trainer.training:
            return self._scale(x), label, *more
        if self.flip and self.pairs is None:
            x = augmentation.mirror(x, self.batches.flips(self.position).to(x.device))
        a = self.batches.augmentations(self.position, self.augment) if self.augment else None
        if self._first is None:
            self._first = self.position - self._done
        # Counted here because the sampler is ahead of the training by the batches that the loader prefetches.
        self.position += 1
        if not self.trainer.overfit_batches:
            self.batches.start = self.position
        x = self._scale(x)
        if a is None:
            return x, label, *more
        x = augmentation.augment(x, a)
        return x if self.grey_levels is None else x.clamp(0, 1), label, augmentation.labels(a).to(x.device)

    @property
    def _done(self) -> int:
        """Number of batches processed, by Lightning's count."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def state_dict(self) -> dict[str, Any]:
        # A batch that was transferred but not processed does not count.
        position = self.position if self._first is None else self._first + self._done
        return {"items": position * self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seek(state_dict["items"] // self.batch_size)

    def size(self, split: Split) -> int:
        """Number of items."""
        return len(self._data(split))

    def images(self, split: Split, count: int | None = None, first: int = 0) -> Tensor:
        """Return at most `count` items (None: all) starting at `first`, float (n, C, H, W) in [0, 1], not mirrored.

        They come in a shuffled order, which mixes the classes and depends only on the number of items.
        """
        data, chosen = self._data(split), self._indices(split, count, first)
        return torch.cat([self._scale(data.__getitems__(part.tolist())[0]) for part in chosen.split(1000)])

    def labels(self, split: Split, count: int | None = None, first: int = 0) -> Tensor:
        """Labels (n,) int64 of `images(split, count, first)`, in the same order."""
        return self._data(split).labels[self._indices(split, count, first)]

    def class_counts(self) -> list[int]:
        """Number of training items of each class 0, 1, ...; raises ValueError if the labels are not classes."""
        splits = self.splits
        return class_counts(type(self).__name__, splits.train.labels, splits.held_out.labels, self.class_names)

    def fingerprint(self, split: Split) -> str:
        """Return the sha256 (hexadecimal) of the grey levels and the content of a split; computed on first use.

        It identifies `images(split)`, independent of path, labels, batch size, mirroring and seed. The content is the
        data set's `digest`: the bytes of arrays, or the names, bytes and framing of encoded images.
        """
        if split not in self._fingerprints:
            content = self._data(split).digest()
            self._fingerprints[split] = hashlib.sha256(f"{self.grey_levels} ".encode() + content).hexdigest()
        return self._fingerprints[split]

    def describe(self) -> str:
        """Describe the data set in one line: items, shape, split, notes."""
        train, held_out = len(self.splits.train), len(self.splits.held_out)
        what = f"{'x'.join(map(str, self.shape))} "
        what += "arrays of real numbers" if self.grey_levels is None else f"images, {self.grey_levels} grey levels"
        what = what if self.is_image else "points in the plane"
        parts = [f"{train:,} train and {held_out:,} held-out {what}", self.splits.how, *self.splits.notes]
        return f"{type(self).__name__}: {'; '.join(parts)}"

    def _scale(self, x: Tensor) -> Tensor:
        if self.grey_levels is None or (self._floats_in_unit and x.is_floating_point()):
            return x if self.grey_levels is None else x.to(torch.float32)
        return x.to(torch.float32, copy=True).div_(self.grey_levels - 1)

    def _data(self, split: str) -> Dataset:
        if split not in ("train", "held_out"):
            raise ValueError(f"split {split!r} does not exist: choose train or held_out")
        return getattr(self.splits, split)

    def _indices(self, split: str, count: int | None, first: int) -> Tensor:
        size = self.size(split)
        if not 0 <= first < size or (count is not None and count < 1):
            raise ValueError(f"count={count}, first={first}: {split} has items 0 to {size - 1}")
        return shuffled(size)[first:][:count]

    def _seek(self, position: int) -> None:
        self.position, self._first = position, None
        if self.batches is not None:
            self.batches.start = 0 if self.trainer is not None and self.trainer.overfit_batches else position

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, data: Dataset, batch_sampler: TrainBatches | list[list[int]]) -> DataLoader:
        return DataLoader(
            data,
            batch_sampler=batch_sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # iter() of a DataLoader draws a random number, which must not come from the global generator.
            generator=torch.Generator(),
        )


def _identity(batch: Batch) -> Batch:
    return batch
