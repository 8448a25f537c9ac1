"""Which items form a batch: each random choice is a function of (seed, position) alone."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from diffusion_lab.data.augmentation import parameters
from diffusion_lab.finite import bad_items, shown


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by `purpose` and `numbers` (all >= 0) alone.

    NumPy's SeedSequence mixes them, so that consecutive seeds or epochs give independent streams.
    """
    mixed = np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


@lru_cache(maxsize=2)
def shuffled(size: int) -> Tensor:
    """Return a permutation of range(size) that depends on the size alone."""
    return torch.randperm(size, generator=generator("images", size))


WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64, torch.bfloat16: torch.float32}
"""Types for which torch or NumPy lacks arithmetic, and a wider type that represents their values exactly."""


def plain_tensor(x: Tensor) -> Tensor:
    """Return a tensor dense, detached, on the CPU, in a type that supports arithmetic."""
    x = x.detach().to("cpu")
    x = x if x.layout is torch.strided else x.to_dense()
    return x.to(WIDER.get(x.dtype, x.dtype))


class InMemory(Dataset):
    """A data set in memory: `x` (N, ...) uint8 grey levels or floats, `labels` (N,) int64.

    `__getitems__` returns (x (B, ...), labels (B,)) without a loop over items.

    Raises ValueError if the two lengths differ, or if an item is not finite.
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        if len(x) != len(labels):
            raise ValueError(f"{len(x)} items but {len(labels)} labels: the files do not belong together")
        x = plain_tensor(x)
        bad = bad_items(x) if x.is_floating_point() else []
        if bad:
            raise ValueError(f"items {shown(bad)} of {len(x)} hold NaN or infinity: leave them out")
        self.x = x.contiguous()
        self.labels = labels.to(torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)  # self.x[chosen] takes six times as long on bytes
        return self.x.index_select(0, chosen), self.labels.index_select(0, chosen)

    def digest(self) -> bytes:
        """Return the sha256 of dtype, shape and values, without the labels."""
        found = hashlib.sha256(f"{self.x.dtype} {tuple(self.x.shape)} ".encode())
        found.update(self.x.numpy().data)
        return found.digest()


class TrainBatches(Sampler[list[int]]):
    """Endless batches of indices: batch p is elements [p B, (p + 1) B) of the sequence perm_0, perm_1, perm_2, ...

    perm_e is a permutation of range(size) that depends on (seed, e) alone. Each epoch contains every index once, a
    batch may span two epochs, and iteration may start at any position `start`. Rank r of `world` gets the r-th of
    `world` equal consecutive shards of batch p, so that all ranks together see the same batch as a single device.

    Raises ValueError if `batch_size` is not a multiple of `world`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        if batch_size % world:
            below = batch_size - batch_size % world
            near = f"{below} or {below + world}" if below else f"{world}"
            raise ValueError(
                f"data.batch_size={batch_size} cannot be split evenly over {world} ranks: set it to {near}"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shard_size = batch_size // world
        self.offset = rank * self.shard_size
        self.start = start
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            yield self.batch(position).tolist()
            position += 1

    def batch(self, position: int) -> Tensor:
        """Return the indices (B / world,) of this rank's shard of batch `position`."""
        start = position * self.batch_size + self.offset
        parts, missing = [], self.shard_size
        while missing:
            epoch, offset = divmod(start, self.size)
            parts.append(self._permutation(epoch)[offset : offset + missing])
            start, missing = start + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)

    def flips(self, position: int) -> Tensor:
        """Return booleans (B / world,), true with probability 1/2: the images of this shard to mirror."""
        flips = torch.rand(self.batch_size, generator=generator("flip", self.seed, position)) < 0.5
        return flips[self.offset : self.offset + self.shard_size]

    def augmentations(self, position: int, probability: float) -> Tensor:
        """Return the parameters (B / world, 8) of the augmentation of this shard's images (`augmentation`)."""
        drawn = parameters(self.batch_size, probability, generator("augment", self.seed, position))
        return drawn[self.offset : self.offset + self.shard_size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._order = torch.randperm(self.size, generator=generator("order", self.seed, epoch))
            self._epoch = epoch
        return self._order
