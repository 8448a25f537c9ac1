"""Feeding: from stored bytes to float batches, mirrored at random, against the pipeline of PIL images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.bench.race import Race, Setting
from diffusion_lab.data import DataModule, InMemory, Splits
from diffusion_lab.run.quiet import quieten

BATCH = 128

Batch = tuple[Tensor, Tensor]
Turn = Callable[[], Batch]
"""Some batches; gives the last one, images and their numbers."""


def stored(count: int) -> Tensor:
    """Bytes (N, 32, 32, 3), as CIFAR-10's files hold them once read."""
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass(kw_only=True, eq=False)
class Stored(DataModule):
    """Images as `CIFAR10` keeps them; an image's label is its number."""

    count: int
    shape: tuple[int, ...] = (3, 32, 32)
    batch_size: int = BATCH

    def load(self) -> Splits:
        images = InMemory(stored(self.count).permute(0, 3, 1, 2), torch.arange(self.count))
        return Splits(images, images, "not divided")


def ours(setting: Setting, count: int, batches: int) -> Turn:
    """Our data module as a Trainer asks it."""
    data = Stored(count=count)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer.training = True
    data.setup("fit")
    loader = iter(data.train_dataloader())

    def feed() -> Batch:
        return data.on_after_batch_transfer([part.to(setting.device) for part in next(loader)], 0)

    return turn(feed, batches)


class Pictures(Dataset):
    """What torchvision's CIFAR10 does with an image: to PIL, transformed."""

    def __init__(self, count: int) -> None:
        from torchvision.transforms import Compose, RandomHorizontalFlip, ToPILImage, ToTensor

        self.data: np.ndarray = stored(count).numpy()
        self.transform = Compose([ToPILImage(), RandomHorizontalFlip(), ToTensor()])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), index


def pictures(setting: Setting, count: int, batches: int, workers: int) -> Turn:
    """A DataLoader of PIL images; its workers stay, and may prepare batches while others take their turns."""
    loader = DataLoader(Pictures(count), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    endless = (batch for _ in iter(int, 1) for batch in loader)
    return turn(lambda: tuple(part.to(setting.device) for part in next(endless)), batches)


def floor(setting: Setting, count: int, batches: int) -> Turn:
    """Rows of a tensor, a flip of half of them, one division."""
    data, start = stored(count).permute(0, 3, 1, 2).contiguous(), iter(int, 1)
    order = torch.randperm(count)
    parts = (part for _ in start for part in order.split(BATCH) if len(part) == BATCH)

    def feed() -> Batch:
        chosen = next(parts)
        x = data.index_select(0, chosen).to(setting.device)
        picks = torch.arange(len(x), device=x.device) + len(x) * (torch.rand(len(x), device=x.device) < 0.5)
        return torch.cat([x, x.flip(-1)]).index_select(0, picks).float().div_(255), chosen

    return turn(feed, batches)


def turn(feed: Callable[[], Batch], batches: int) -> Turn:
    """So many batches."""

    def work() -> Batch:
        for _ in range(batches):
            batch = feed()
        return batch

    return work


def content(results: Mapping[str, Batch], count: int) -> str:
    """Whether each image of every last batch is the stored one in [0, 1] or its mirror image; which share is mirrored.

    Raises:
        AssertionError: naming a contestant that feeds something else.
    """
    data, shares = stored(count).permute(0, 3, 1, 2), []
    for name, (x, number) in results.items():
        wanted = data[number.cpu()].float() / 255
        plain, mirrored = ((x.cpu() == w).flatten(1).all(1) for w in (wanted, wanted.flip(-1)))
        assert (plain | mirrored).all() and x.dtype == torch.float32, f"{name} feeds other images"
        shares.append(mirrored.float().mean().item())
    return f"equal content; mirrored: {min(shares):.0%} to {max(shares):.0%}"


def races(setting: Setting) -> Iterator[Race]:
    """Batches of CIFAR-10's size, mirrored with probability 1/2."""
    quieten()
    count, batches = (1024, 2) if setting.small else (50_000, 60)
    ways = {
        "ours: data module and its loader": ours,
        "PIL transforms, 4 workers": partial(pictures, workers=4),
        "PIL transforms, no workers": partial(pictures, workers=0),
        "floor: rows of a tensor, flip": floor,
    }
    yield Race(
        f"feeding {BATCH} images 32x32x3 a batch",
        {name: partial(way, setting, count, batches) for name, way in ways.items()},
        unit="images/s",
        per=batches * BATCH,
        note=lambda results: content(results, count),
    )
