"""Reference statistics: of a split of a data set, measured once and cached, or from a file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.sample_store import compute_missing
from diffusion_lab.evaluation.scorer import Features, Reference
from diffusion_lab.metric import Extractor, Statistics
from diffusion_lab.storage.lock import exclusive

KEPT = 10_000
"""Rows of features stored with the moments, for measures that need more than moments."""


def content(data: DataModule, split: str) -> tuple[str, str]:
    """Return the name of a split in a protocol, and the digest of its content."""
    return f"{type(data).__name__.lower()} {split}", data.fingerprint(split)[:16]


def describe(data: DataModule, split: str, count: int, extractor: Extractor) -> dict[str, Any]:
    """Return the protocol of a split's statistics; the statistics are equal if and only if it is."""
    name, digest = content(data, split)
    return {**extractor.protocol(), "reference": name, "reference_digest": digest, "reference_count": count}


def prepare(extractor: Extractor, data: DataModule, device: torch.device | str) -> None:
    """Train an extractor on the training images if necessary, and call it on two of them.

    Raises:
        ValueError: if it does not support images of this shape.
    """
    training = (data.images("train"), data.labels("train")) if extractor.learned else (data.images("train", 2), None)
    extractor.prepare(*training, device)
    try:
        extractor(training[0][:2].to(device))
    except (ValueError, RuntimeError) as error:
        size = "x".join(map(str, data.shape))
        raise ValueError(
            f"the {extractor.name} features do not support {size} images ({' '.join(str(error).split())}): "
            "choose metric=network with a network that supports them, metric=points (distances for any channels), or "
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
    """Return the file of a split's statistics, which all ranks measure together if it does not exist.

    The file name ends in a digest of the images, the split, their number, and the extractor's weights and settings, so
    that old statistics are never used for a changed data set or extractor.
    """
    size = data.size(split)
    count = size if count is None else min(count, size)
    protocol = describe(data, split, count, extractor)
    digest = hashlib.sha256(json.dumps([protocol, KEPT], sort_keys=True).encode()).hexdigest()[:12]
    name = f"{protocol['reference'].replace(' ', '_')}_{count}_{extractor.name}"
    path = Path(cache) / f"{name}_{digest}.npz"
    store = ChunkedArray(path.with_name(f".{path.stem}"), batch_size)

    def work(chunk: range) -> Callable[[], None]:
        images = data.images(split, len(chunk), first=chunk.start)
        return partial(store.write, chunk, extractor(images.to(device)).cpu())

    def save() -> None:
        features = Features.of(Rows(store, range(count)))
        Statistics(features.moments, features.rows[:KEPT], protocol).save(path)
        shutil.rmtree(store.folder)

    first = ranks.rank_and_world()[0] == 0  # the others wait for it in what follows
    with exclusive(store.folder.with_suffix(".lock")) if first else nullcontext():
        if not ranks.from_first(path.is_file()):
            compute_missing(store, count, work, f"features of {protocol['reference']}", device)
            ranks.on_first(save)
    return path


def load(path: str | Path, extractor: Extractor, name: str | None = None) -> Reference:
    """Load a reference from a file of statistics, ours or another program's.

    Raises:
        ValueError: if it was measured with another extractor or other settings, naming the differences, or has another
            number of dimensions.
    """
    path = Path(path)
    statistics, expected = Statistics.load(path), extractor.protocol()
    different = [f"{k} {statistics.protocol[k]} there, {v} here" for k, v in expected.items()
                 if k in statistics.protocol and statistics.protocol[k] != v]  # fmt: skip
    if different:
        raise ValueError(f"{path} was measured under another protocol: {'; '.join(different)}; measure it again")
    if len(statistics.moments.mean) != extractor.dimensions:
        raise ValueError(
            f"{path} has {len(statistics.moments.mean)} dimensions, the {extractor.name} features have "
            f"{extractor.dimensions}: use statistics of these features"
        )
    protocol = {k: v for k, v in statistics.protocol.items() if k.startswith("reference")}
    if not protocol:  # from another program
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        protocol = {"reference": path.name, "reference_digest": digest, "reference_protocol": "not recorded"}
    return Reference(name or re.sub(r"\W+", "_", path.stem), statistics, protocol)
