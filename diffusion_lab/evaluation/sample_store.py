"""Drawing a long series of samples, sharing it among ranks, and going on where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lab import ranks
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.metric import Extractor, to_uint8
from diffusion_lab.model import Model
from diffusion_lab.sampler import Sampler


class SampleStore:
    """Samples 0, 1, 2, ... of a model and a sampler, drawn once each and kept under `folder`.

    Sample i is a function of (seed, i); samples are drawn in fixed chunks of `batch_size`, because arithmetic in
    batches of another shape rounds differently.  So the files are the same whatever the number of ranks, and however
    often the job was killed and started again.  Images are stored as bytes (N, H, W, C), what has no grey levels as
    float32 (N, ...).

        samples/00000000.npy, ...   the samples
        cost/00000000.npy, ...      of each chunk: network evaluations, seconds, samples, one row (1, 3)

    Args:
        folder: where they are.
        model: what is sampled from.
        sampler: None takes the model's.
        seed: of the series.
        batch_size: samples drawn at once.
    """

    def __init__(
        self, folder: Path, model: Model, sampler: Sampler | None = None, seed: int = 0, batch_size: int = 500
    ) -> None:
        self.folder, self.model, self.sampler = Path(folder), model, sampler or model.sampler
        self.seed, self.batch_size = seed, batch_size
        self.samples, self.costs = ChunkedArray(folder / "samples", batch_size), ChunkedArray(folder / "cost", 1)

    @property
    def images(self) -> bool:
        """Whether samples are images of grey levels, not points or other real numbers."""
        return self.model.has_grey_levels

    def chunk(self, chunk: range) -> Tensor:
        """Samples of a chunk in [0, 1], (B, C, H, W), or what has no grey levels: read if they are there, else drawn.

        Raises:
            NonFinite: if they are not finite; nothing is kept then.
        """
        if not self.samples.has(chunk):
            self.draw(chunk)
        stored = self.samples.read(chunk)
        return stored.permute(0, 3, 1, 2).float() / 255 if self.images else stored

    def draw(self, chunk: range) -> None:
        """Draw a chunk and keep it."""
        self.model.denoiser.nfe, start = 0, time.perf_counter()
        drawn = self.model.sample(
            len(chunk), seed=self.seed, first=chunk.start, batch_size=len(chunk), sampler=self.sampler
        )
        cost = [self.model.denoiser.nfe, time.perf_counter() - start, len(chunk)]
        self.costs.write(self._cost(chunk), torch.tensor([cost], dtype=torch.float64))
        self.samples.write(chunk, to_uint8(drawn).permute(0, 2, 3, 1) if self.images else drawn)

    def complete(self, count: int) -> None:
        """Draw what is missing of samples 0..count-1, together with the other ranks."""
        share(self.samples, count, self.draw, "sampling")

    def rows(self, span: range) -> Rows:
        """Stored samples as one array."""
        return Rows(self.samples, span)

    def features(self, extractor: Extractor) -> ChunkedArray:
        """Where the samples' features are kept."""
        return ChunkedArray(self.folder / f"features_{extractor.digest[:8]}", self.batch_size)

    def labels(self, span: range) -> Tensor | None:
        """The class (n,) that each sample was asked to be; None for a model without labels."""
        return self.model.labels_of(span, self.seed)

    def noted(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Records of these samples with what they were asked to be, in the protocol, and with their guidance."""
        model = self.model
        asked = {} if model.labels is None else {"labels": model.labels.describe(model.label)}
        guided = {} if model.guidance is None else {"guidance": str(model.guidance)}
        return {k: {**record, **guided, "protocol": {**record["protocol"], **asked}} for k, record in records.items()}

    def cost(self, count: int) -> tuple[float, float]:
        """(network evaluations for a sample, samples a second on one device), over samples 0..count-1."""
        chunks = self.samples.ranges(count)
        calls, seconds, samples = torch.cat([self.costs.read(self._cost(chunk)) for chunk in chunks]).T
        return (calls * samples).sum().item() / samples.sum().item(), samples.sum().item() / seconds.sum().item()

    @staticmethod
    def _cost(chunk: range) -> range:
        return range(chunk.start, chunk.start + 1)


def share(store: ChunkedArray, count: int, work: Callable[[range], None], what: str) -> None:
    """Fill what a store lacks of rows 0..count-1, `work(chunk)` by chunk, each on one rank; return when all is there.

    Rank 0 shows a bar with the whole job's rate and the time left.
    """
    missing = ranks.from_first(store.missing(count))
    if not missing:
        return
    left = sum(map(len, missing))
    shown = ranks.rank_and_world()[0] == 0
    pause = 0.1 if sys.stderr.isatty() else 30.0  # seconds between two updates: a log file is no place for a bar
    with (
        ranks.synchronized(),
        tqdm(total=left, desc=what, unit="sample", disable=not shown, leave=False, mininterval=pause) as bar,
    ):
        for chunk in ranks.shard(missing):
            work(chunk)
            if shown:  # the others' chunks count too
                bar.update(left - sum(len(c) for c in missing if not store.path(c).exists()) - bar.n)
