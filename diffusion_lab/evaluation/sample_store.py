"""Generate many samples on several ranks, stored on disk so that an interrupted job resumes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lab import ranks
from diffusion_lab.evaluation.background import Background
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.metric import Extractor, to_uint8
from diffusion_lab.model import Model
from diffusion_lab.sampler import Sampler

Work = Callable[[range], Callable[[], None]]
"""Computes the rows of a chunk, and returns the function that stores them."""


class SampleStore:
    """Samples 0, 1, 2, ... of a model and a sampler, each generated once and stored under `folder`.

    Sample i depends on (seed, i) alone.  Chunks have the fixed size `batch_size`, as rounding errors depend on the
    batch shape; the files are therefore the same for any number of ranks and interruptions.  Images are stored as bytes
    (N, H, W, C), data without grey levels as float32 (N, ...).

        samples/00000000.npy, ...   the samples
        cost/00000000.npy, ...      of each chunk: network evaluations, seconds, samples, one row (1, 3)

    Args:
        folder: directory of the samples.
        model: the model.
        sampler: None takes the model's.
        seed: of the samples.
        batch_size: samples generated at once.
    """

    def __init__(
        self, folder: Path, model: Model, sampler: Sampler | None = None, seed: int = 0, batch_size: int = 500
    ) -> None:
        self.folder, self.model, self.sampler = Path(folder), model, sampler or model.sampler
        self.seed, self.batch_size = seed, batch_size
        self.samples, self.costs = ChunkedArray(folder / "samples", batch_size), ChunkedArray(folder / "cost", 1)

    @property
    def images(self) -> bool:
        """Whether samples are images with grey levels, not points or other real numbers."""
        return self.model.has_grey_levels

    def chunk(self, chunk: range) -> Tensor:
        """Return the samples of a chunk, images (B, C, H, W) in [0, 1] or real numbers; generate them if missing.

        Raises:
            NonFinite: if they are not finite; they are not stored then.
        """
        if not self.samples.has(chunk):
            self.generate(chunk)()
        stored = self.samples.read(chunk)
        return stored.permute(0, 3, 1, 2).float() / 255 if self.images else stored

    def generate(self, chunk: range, then: Callable[[range], None] | None = None) -> Callable[[], None]:
        """Generate the samples of a chunk; return the function that stores them, and then calls `then(chunk)`."""
        self.model.denoiser.nfe, start = 0, time.perf_counter()
        samples = self.model.sample(
            len(chunk), seed=self.seed, first=chunk.start, batch_size=len(chunk), sampler=self.sampler
        )
        cost = [self.model.denoiser.nfe, time.perf_counter() - start, len(chunk)]
        rows = to_uint8(samples).permute(0, 2, 3, 1) if self.images else samples

        def store() -> None:
            self.costs.write(self._cost(chunk), torch.tensor([cost], dtype=torch.float64))
            self.samples.write(chunk, rows)
            if then is not None:
                then(chunk)

        return store

    def complete(self, count: int, then: Callable[[range], None] | None = None) -> None:
        """Generate the missing ones of samples 0..count-1, together with the other ranks.

        `then(chunk)` follows when a chunk is stored, on the rank that generated it.
        """
        compute_missing(self.samples, count, partial(self.generate, then=then), "sampling", self.model.device)

    def rows(self, span: range) -> Rows:
        """Return stored samples as one array."""
        return Rows(self.samples, span)

    def features(self, extractor: Extractor) -> ChunkedArray:
        """Return the array in which the samples' features are stored."""
        return ChunkedArray(self.folder / f"features_{extractor.digest[:8]}", self.batch_size)

    def complete_features(self, extractor: Extractor, count: int) -> ChunkedArray:
        """Extract the missing features of samples 0..count-1, together with the other ranks; return their array."""
        features, device = self.features(extractor), self.model.device

        def extract(chunk: range) -> Callable[[], None]:
            return partial(features.write, chunk, extractor(self.chunk(chunk).to(device)).cpu())

        compute_missing(features, count, extract, "features", device)
        return features

    def labels(self, span: range) -> Tensor | None:
        """Return the label (n,) of each sample; None for a model without labels."""
        return self.model.labels_of(span, self.seed)

    def annotate(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return records of these samples with their guidance, and their labels in the protocol."""
        model, labels = self.model, self.model.sampled_labels()
        labels = {} if labels is None else {"labels": labels.describe(model.label)}
        guidance = {} if model.guidance is None else {"guidance": str(model.guidance)}
        return {
            k: {**record, **guidance, "protocol": {**record["protocol"], **labels}} for k, record in records.items()
        }

    def cost(self, count: int) -> tuple[float, float]:
        """(network evaluations for a sample, samples a second on one device), over samples 0..count-1."""
        chunks = self.samples.ranges(count)
        calls, seconds, samples = torch.cat([self.costs.read(self._cost(chunk)) for chunk in chunks]).T
        return (calls * samples).sum().item() / samples.sum().item(), samples.sum().item() / seconds.sum().item()

    @staticmethod
    def _cost(chunk: range) -> range:
        return range(chunk.start, chunk.start + 1)


def compute_missing(store: ChunkedArray, count: int, work: Work, what: str, device: torch.device | str) -> None:
    """Call `work(chunk)` for the missing chunks of rows 0..count-1, each on one rank; return when all are stored.

    What it returns stores the chunk, on an accelerator in the background while the next one is computed.
    Rank 0 shows a progress bar with the rate of all ranks and the time left.
    """
    missing = ranks.from_first(store.missing(count))
    if not missing:
        return
    left = sum(map(len, missing))
    shown = ranks.rank_and_world()[0] == 0
    interval = 0.1 if sys.stderr.isatty() else 30.0  # seconds between two updates: few in a log file
    with (
        ranks.synchronized(),
        tqdm(total=left, desc=what, unit="sample", disable=not shown, leave=False, mininterval=interval) as bar,
        Background(device) as background,
    ):

        def finish(save: Callable[[], None]) -> None:
            save()
            if shown:  # the others' chunks count too
                bar.update(left - sum(len(c) for c in missing if not store.path(c).exists()) - bar.n)

        for chunk in ranks.shard(missing):
            background(partial(finish, work(chunk)))
