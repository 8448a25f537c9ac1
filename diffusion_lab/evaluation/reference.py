"""The statistics that samples are held against: of a split of a data set, measured once, or of a file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.sample_store import share
from diffusion_lab.evaluation.scorer import Features, Reference
from diffusion_lab.metric import Extractor, Statistics
from diffusion_lab.storage.lock import lock

KEPT = 10_000
"""Rows of features that statistics hold beside their moments, for the measures that need more than moments."""


def content(data: DataModule, split: str) -> tuple[str, str]:
    """A split's name in a protocol, and the digest of its content."""
    return f"{type(data).__name__.lower()} {split}", data.fingerprint(split)[:16]


def describe(data: DataModule, split: str, count: int, extractor: Extractor) -> dict[str, Any]:
    """The protocol of a split's statistics: equal if and only if the statistics are."""
    name, digest = content(data, split)
    return {**extractor.protocol(), "reference": name, "reference_digest": digest, "reference_count": count}


def prepare(extractor: Extractor, data: DataModule, device: torch.device | str) -> None:
    """Fit an extractor to the training images if it learns, and try it on two of them.

    Raises:
        ValueError: if it cannot take such images.
    """
    training = (data.images("train"), data.labels("train")) if extractor.learned else (data.images("train", 2), None)
    extractor.prepare(*training, device)
    try:
        extractor(training[0][:2].to(device))
    except (ValueError, RuntimeError) as error:
        size = "x".join(map(str, data.shape))
        raise ValueError(
            f"the {extractor.name} features cannot be taken of {size} images ({' '.join(str(error).split())}): "
            "choose metric=network with a network that takes them, metric=points (distances of many channels), or "
            "metric.features=null"
        ) from error


def measure(
    data: DataModule,
    split: str,
    extractor: Extractor,
    device: torch.device | str,
    cache: str | Path,
    count: int | None = None,
    batch_size: int = 500,
) -> Path:
    """The file of a split's statistics, measured together with the other ranks unless it is there.

    The file's name ends in a digest of what decides its contents: the images themselves, the split, how many of
    them, and the extractor's weights and rules; so a changed data set or extractor is never met with old statistics.
    """
    size = data.size(split)
    count = size if count is None else min(count, size)
    protocol = describe(data, split, count, extractor)
    digest = hashlib.sha256(json.dumps([protocol, KEPT], sort_keys=True).encode()).hexdigest()[:12]
    words = f"{protocol['reference'].replace(' ', '_')}_{count}_{extractor.name}"
    path = Path(cache) / f"{words}_{digest}.npz"
    store = ChunkedArray(path.with_name(f".{path.stem}"), batch_size)

    def work(chunk: range) -> None:
        images = data.images(split, len(chunk), first=chunk.start)
        store.write(chunk, extractor(images.to(device)))

    def save() -> None:
        features = Features.of(Rows(store, range(count)))
        Statistics(features.moments, features.rows[:KEPT], protocol).save(path)
        shutil.rmtree(store.folder)

    with one_job_at_a_time(store.folder.with_suffix(".lock")):
        if not ranks.from_first(path.is_file()):
            share(store, count, work, f"features of {protocol['reference']}")
            ranks.on_first(save)
    return path


@contextmanager
def one_job_at_a_time(path: Path) -> Iterator[None]:
    """Rank 0 waits until no other job measures the same; its fellows wait for it in what comes next."""
    if ranks.rank_and_world()[0] != 0:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with suppress(OSError):  # a file system without locks
            lock(file, wait=True)
        yield
        path.unlink(missing_ok=True)


def load(path: str | Path, extractor: Extractor, word: str | None = None) -> Reference:
    """The reference in a file of statistics, ours or another program's.

    Raises:
        ValueError: if it was measured with another extractor or other rules, naming what differs, or has another
            number of dimensions.
    """
    path = Path(path)
    statistics, own = Statistics.load(path), extractor.protocol()
    different = [f"{k} {statistics.protocol[k]} there, {v} here" for k, v in own.items()
                 if k in statistics.protocol and statistics.protocol[k] != v]  # fmt: skip
    if different:
        raise ValueError(f"{path} was measured under another protocol: {'; '.join(different)}; measure it again")
    if len(statistics.moments.mean) != extractor.dimensions:
        raise ValueError(
            f"{path} has {len(statistics.moments.mean)} dimensions, the {extractor.name} features have "
            f"{extractor.dimensions}: use the statistics of these features"
        )
    protocol = {k: v for k, v in statistics.protocol.items() if k.startswith("reference")}
    if not protocol:  # of another program: the file itself is all that is known
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        protocol = {"reference": path.name, "reference_digest": digest, "reference_protocol": "not recorded"}
    return Reference(word or re.sub(r"\W+", "_", path.stem), statistics, protocol)
