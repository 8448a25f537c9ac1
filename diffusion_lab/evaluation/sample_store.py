"""Generate many samples on several ranks, stored on disk so that an interrupted job resumes."""

from __future__ import annotations

import sys
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
from diffusion_lab.evaluation.seconds import DeviceClock
from diffusion_lab.metric import Extractor, to_uint8
from diffusion_lab.model import Model
from diffusion_lab.sampler import Sampler

Work = Callable[[range], Callable[[], None]]
"""Computes the rows of a chunk, and returns the function that stores them."""

Then = Callable[[range], None] | None
"""Follows when a chunk is stored."""


class SampleStore:
    """Samples 0, 1, 2, ... of a model and a sampler, each generated once and stored under `folder`.

    Sample i depends on (seed, i) alone.  Chunks have the fixed size `batch_size`, as rounding errors depend on the
    batch shape; the files are therefore the same for any number of ranks and interruptions.  Images are stored as bytes
    (N, H, W, C), data without grey levels as float32 (N, ...).

        samples/00000000.npy, ...   the samples
        cost/00000000.npy, ...      of each chunk: network evaluations, seconds, samples, one row (1, 3)
        features_<digest>/...       the features of each extractor

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
        self._feature_seconds = 0.0

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
        return self.from_rows(self.samples.read(chunk))

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return stored samples as images (B, C, H, W) in [0, 1] or real numbers."""
        return rows.permute(0, 3, 1, 2).float() / 255 if self.images else rows

    def generate(self, chunk: range, extractor: Extractor | None = None, then: Then = None) -> Callable[[], None]:
        """Generate the samples of a chunk, and their features; return the function that stores both.

        On an accelerator the features are queued and not awaited: it extracts them while the next chunk begins.
        """
        self.model.denoiser.nfe = 0
        with DeviceClock(self.model.device) as sampling:
            samples = self.model.sample(
                len(chunk), seed=self.seed, first=chunk.start, batch_size=len(chunk), sampler=self.sampler
            )
        calls = self.model.denoiser.nfe
        rows = to_uint8(samples).permute(0, 2, 3, 1) if self.images else samples
        with DeviceClock(self.model.device) as extraction:
            features = None if extractor is None else extractor(self.from_rows(rows))

        def store() -> None:
            cost = torch.tensor([[calls, sampling.seconds(), len(chunk)]], dtype=torch.float64)
            self.costs.write(self._cost(chunk), cost)
            self.samples.write(chunk, rows)
            if features is not None:
                self.features(extractor).write(chunk, features)
                self._feature_seconds += extraction.seconds()
            if then is not None:
                then(chunk)

        return store

    def complete(self, count: int, extractor: Extractor | None = None, scored: int = 0, then: Then = None) -> float:
        """Generate the missing ones of samples 0..count-1, together with the other ranks.

        Returns the seconds of the features on this rank.

        Args:
            count: N.
            extractor: extracts features of the new ones among samples 0..scored-1.
            scored: see `extractor`.
            then: `then(chunk)` follows when a chunk is stored, on the rank that generated it.
        """

        def generate(chunk: range) -> Callable[[], None]:
            return self.generate(chunk, extractor if chunk.start < scored else None, then)

        before = self._feature_seconds
        compute_missing(self.samples, count, generate, "sampling", self.model.device)
        return self._feature_seconds - before

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
