"""Data loading: from stored bytes to randomly mirrored float batches, compared with a pipeline of PIL images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.bench.benchmark import Benchmark, Setting
from diffusion_lab.data import DataModule, InMemory, Splits
from diffusion_lab.run.lightning import quieten

BATCH = 128

Batch = tuple[Tensor, Tensor]
Run = Callable[[], Batch]
"""Load some batches; return the last one, images and their indices."""


def stored(count: int) -> Tensor:
    """Random bytes (N, 32, 32, 3), in CIFAR-10's layout."""
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass(kw_only=True, eq=False)
class Stored(DataModule):
    """Images in memory like `CIFAR10`; the label of an image is its index."""

    count: int
    shape: tuple[int, ...] = (3, 32, 32)
    batch_size: int = BATCH

    def load(self) -> Splits:
        images = InMemory(stored(self.count).permute(0, 3, 1, 2), torch.arange(self.count))
        return Splits(images, images, "not divided")


def ours(setting: Setting, count: int, batches: int) -> Run:
    """Our data module, called like in a Trainer."""
    data = Stored(count=count)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer.training = True
    data.setup("fit")
    loader = iter(data.train_dataloader())

    def feed() -> Batch:
        return data.on_after_batch_transfer([part.to(setting.device) for part in next(loader)], 0)

    return run(feed, batches)


class Pictures(Dataset):
    """Images processed like in torchvision's CIFAR10: to PIL, then transformed."""

    def __init__(self, count: int) -> None:
        from torchvision.transforms import Compose, RandomHorizontalFlip, ToPILImage, ToTensor

        self.data: np.ndarray = stored(count).numpy()
        self.transform = Compose([ToPILImage(), RandomHorizontalFlip(), ToTensor()])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), index


def pictures(setting: Setting, count: int, batches: int, workers: int) -> Run:
    """A DataLoader of PIL images; its workers may prefetch batches while others run."""
    loader = DataLoader(Pictures(count), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    endless = (batch for _ in iter(int, 1) for batch in loader)
    return run(lambda: tuple(part.to(setting.device) for part in next(endless)), batches)


def hand_written(setting: Setting, count: int, batches: int) -> Run:
    """Hand-written: index a tensor, mirror half of the images, divide."""
    data, start = stored(count).permute(0, 3, 1, 2).contiguous(), iter(int, 1)
    order = torch.randperm(count)
    parts = (part for _ in start for part in order.split(BATCH) if len(part) == BATCH)

    def feed() -> Batch:
        chosen = next(parts)
        x = data.index_select(0, chosen).to(setting.device)
        picks = torch.arange(len(x), device=x.device) + len(x) * (torch.rand(len(x), device=x.device) < 0.5)
        return torch.cat([x, x.flip(-1)]).index_select(0, picks).float().div_(255), chosen

    return run(feed, batches)


def run(feed: Callable[[], Batch], batches: int) -> Run:
    """Return a function that loads `batches` batches."""

    def work() -> Batch:
        for _ in range(batches):
            batch = feed()
        return batch

    return work


def content(results: Mapping[str, Batch], count: int) -> str:
    """Check that each image of the last batches is correct or mirrored; report the fraction mirrored.

    Raises:
        AssertionError: naming an implementation that returns other images.
    """
    data, fractions = stored(count).permute(0, 3, 1, 2), []
    for name, (x, number) in results.items():
        wanted = data[number.cpu()].float() / 255
        plain, mirrored = ((x.cpu() == w).flatten(1).all(1) for w in (wanted, wanted.flip(-1)))
        assert (plain | mirrored).all() and x.dtype == torch.float32, f"{name} returns other images"
        fractions.append(mirrored.float().mean().item())
    return f"equal content; mirrored: {min(fractions):.0%} to {max(fractions):.0%}"


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Batches of CIFAR-10's size, mirrored with probability 1/2."""
    quieten()
    count, batches = (1024, 2) if setting.small else (50_000, 60)
    ways = {
        "ours: data module and its loader": ours,
        "PIL transforms, 4 workers": partial(pictures, workers=4),
        "PIL transforms, no workers": partial(pictures, workers=0),
        "hand-written: rows of a tensor, flip": hand_written,
    }
    yield Benchmark(
        f"loading {BATCH} images 32x32x3 a batch",
        {name: partial(way, setting, count, batches) for name, way in ways.items()},
        unit="images/s",
        per=batches * BATCH,
        note=lambda results: content(results, count),
    )
