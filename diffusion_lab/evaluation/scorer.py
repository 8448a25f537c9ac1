"""Scorer: metrics of a set of features relative to a reference, each with its protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from diffusion_lab.metric import (
    Extractor,
    Moments,
    Statistics,
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    neighbour_scores,
    sample_count,
)

Record = dict[str, Any]
"""A metric: `value`, `better` (lower or higher), the `protocol` that must agree for a comparison, and details."""

Measure = Literal["frechet", "kernel", "inception_score", "neighbours", "frechet_infinity"]

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in Binkowski et al. 2018 and torch-fidelity
SPLITS = 10  # of the Inception Score (Salimans et al. 2016)
BLOCK = 2000  # rows of features in memory
SHOWN_CLASSES = 100  # largest number of classes whose counts are recorded


@dataclass(frozen=True)
class Features:
    """Features of a set of images: their moments, and rows of features (all, or the stored ones)."""

    moments: Moments
    rows: Any

    @classmethod
    def of(cls, rows: Any) -> Features:
        """Compute the moments of all rows, read in blocks."""
        return cls(moments(rows), rows)


@dataclass(frozen=True)
class Reference:
    """A reference: its name in metrics ("train"), its statistics, and its part of the protocol."""

    name: str
    statistics: Statistics
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """Computes metrics of features.

    Args:
        extractor: the extractor of the features.
        reference: the reference.
        measures: metrics to compute; those that the reference or the extractor does not support are skipped.
        neighbours: largest number of rows of each set for precision, recall, density and coverage.
        device: where distances between rows are computed.
    """

    extractor: Extractor
    reference: Reference
    measures: Sequence[Measure]
    neighbours: int = 10_000
    device: torch.device | str = "cpu"

    def __call__(self, features: Features) -> dict[str, Record]:
        """Return name -> record of every supported metric."""
        records: dict[str, Record] = {}
        count = len(features.rows)
        for measure in self.supported(count):
            kind = MEASURES[measure]
            records |= zip(kind.names(self, count), kind.records(self, features), strict=True)
        return records

    def supported(self, count: int) -> list[Measure]:
        """Return the measures that can be computed from `count` samples."""
        return [measure for measure in self.measures if self.obstacle(measure, count) is None]

    def obstacle(self, measure: Measure, count: int) -> str | None:
        """Return why a measure cannot be computed from `count` samples, or None."""
        kind, statistics = MEASURES[measure], self.reference.statistics
        features, known = statistics.features, statistics.moments.count
        if count < kind.min_samples:
            return f"{measure} needs {kind.min_samples} samples, there are {count}"
        if known is not None and known < kind.min_reference:
            return f"{measure} needs {kind.min_reference} reference images, {self.reference.name} has {known}"
        if kind.needs == "classes" and not self.extractor.classes:
            return f"{measure} needs class logits, which the {self.extractor.name} features do not have"
        if kind.needs == "features" and features is None:
            return f"{measure} needs features besides mu and sigma, which the reference does not contain"
        if kind.needs == "features" and len(features) < kind.min_reference:
            return f"{measure} needs features of {kind.min_reference} reference images, there are {len(features)}"
        return None

    def names(self, count: int) -> list[str]:
        """Return the names of the records of `count` samples."""
        return [name for measure in self.supported(count) for name in MEASURES[measure].names(self, count)]

    def name(self, metric: str, count: int | str) -> str:
        """Return a metric's name with extractor, reference and count, such as fid_inception_train_50k."""
        shown = count if isinstance(count, str) else sample_count(count)
        return f"{metric}_{self.extractor.name}_{self.reference.name}_{shown}"

    def record(self, value: float, better: Literal["lower", "higher"], count: int, **protocol: Any) -> Record:
        """Return a record; two values are comparable if their protocols are equal."""
        return {
            "value": value,
            "better": better,
            "protocol": {**self.extractor.protocol(), **self.reference.protocol, "samples": count, **protocol},
        }

    def frechet(self, features: Features) -> list[Record]:
        distance = frechet_distance(features.moments, self.reference.statistics.moments)
        record = self.record(distance, "lower", features.moments.count)
        if 0 < self.extractor.classes <= SHOWN_CLASSES:
            record["classes"] = self.class_counts(features.rows)
        return [record]

    def class_counts(self, rows: Any) -> dict[str, int]:
        """Return the number of rows that the extractor's classifier assigns to each class."""
        counts: Counter[int] = Counter()
        for start in range(0, len(rows), BLOCK):
            counts.update(self.extractor.logits(torch.as_tensor(rows[start : start + BLOCK])).argmax(1).tolist())
        return {str(k): counts[k] for k in sorted(counts)}

    def frechet_infinity(self, features: Features) -> list[Record]:
        result = frechet_at_infinity(features.rows, self.reference.statistics.moments, device=self.device)
        record = self.record(result.value, "lower", len(features.rows), extrapolated="to infinitely many samples")
        return [record | {"extrapolated": True, "counts": list(result.counts), "distances": list(result.distances)}]

    def kernel(self, features: Features) -> list[Record]:
        real, count = self.reference.statistics.features, len(features.rows)
        size = min(SUBSET_SIZE, count, len(real))
        result = kernel_distance(features.rows, real, SUBSETS, size, device=self.device)
        record = self.record(result.value, "lower", count, subsets=SUBSETS, subset_size=size)
        return [record | {"standard_error": result.standard_error}]

    def inception_score(self, features: Features) -> list[Record]:
        count = len(features.rows)
        result = inception_score(features.rows, self.extractor.logits, min(SPLITS, count), device=self.device)
        protocol = {**self.extractor.protocol(), "samples": count, "splits": result.splits}  # without a reference
        return [
            {
                "value": result.value,
                "better": "higher",
                "standard_deviation": result.standard_deviation,
                "protocol": protocol,
            }
        ]

    def neighbour_records(self, features: Features) -> list[Record]:
        real, fake = (rows[: self.neighbours] for rows in (self.reference.statistics.features, features.rows))
        scores = neighbour_scores(fake, real, 3, 5, self.device)
        return [
            self.record(getattr(scores, metric), "higher", len(fake), neighbours=k, reference_rows=len(real))
            for metric, k in NEIGHBOURS.items()
        ]


NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""k of the k-th nearest neighbour, whose distance is the radius of a ball (Kynkäänniemi 2019; Naeem 2020)."""


@dataclass(frozen=True)
class _Kind:
    """A measure: names of its metrics for a number of samples, their records, and what it needs."""

    names: Callable[[Scorer, int], list[str]]
    records: Callable[[Scorer, Features], list[Record]]
    needs: Literal["moments", "classes", "features"]
    min_samples: int = 2
    min_reference: int = 2


MEASURES: dict[str, _Kind] = {
    "frechet": _Kind(lambda s, n: [s.name(s.extractor.short, n)], Scorer.frechet, "moments"),
    "frechet_infinity": _Kind(
        lambda s, n: [s.name(s.extractor.short, "infinity")], Scorer.frechet_infinity, "moments", 1000
    ),
    "kernel": _Kind(lambda s, n: [s.name({"fid": "kid"}.get(s.extractor.short, "kd"), n)], Scorer.kernel, "features"),
    "inception_score": _Kind(
        lambda s, n: [f"inception_score_{s.extractor.name}_{sample_count(n)}"],
        Scorer.inception_score,
        "classes",
        min_reference=0,
    ),
    "neighbours": _Kind(
        lambda s, n: [s.name(metric, min(n, s.neighbours)) for metric in NEIGHBOURS],
        Scorer.neighbour_records,
        "features",
        6,
        6,
    ),
}


CHARTS = (
    *("fid", "fd", "kid", "kd", "inception_score", *NEIGHBOURS),
    *("sliced_wasserstein", "energy_distance", "log_density", "mode_weight_error"),
)
"""Names of metrics without extractor, reference and count."""


def chart_name(name: str) -> str:
    """Return a metric's name without extractor, reference and count: fid for fid_inception_train_50k."""
    prefix = "raw_" if name.startswith("raw_") else ""
    bare = name.removeprefix(prefix)
    metric = next((metric for metric in CHARTS if bare.startswith(f"{metric}_")), bare)
    return prefix + metric + ("_infinity" if bare.endswith("_infinity") else "")


KEPT = ("better", "extrapolated")
"""Fields that are equal in all repeats of a record."""


def repeated(runs: Sequence[dict[str, Record]]) -> dict[str, Record]:
    """Combine the records of several disjoint sets of samples: the value is the mean, with min, max and all values."""
    if len(runs) == 1:
        return runs[0]
    joined = {}
    for name, first in runs[0].items():
        values = [run[name]["value"] for run in runs]
        joined[name] = {
            **{k: first[k] for k in KEPT if k in first},
            "value": sum(values) / len(values),
            "min": min(values),
            "max": max(values),
            "repeats": values,
            "protocol": {**first["protocol"], "repeats": len(values)},
        }
    return joined


def with_real(records: dict[str, Record], real: dict[str, Record]) -> dict[str, Record]:
    """Add to each record the value of the same metric for real images, whose number may differ."""
    scores = {name.rpartition("_")[0]: record for name, record in real.items()}
    joined = {}
    for name, record in records.items():
        # A limit for infinitely many samples is not comparable with the value of a finite number of images.
        score = None if record.get("extrapolated") else scores.get(name.rpartition("_")[0])
        added = score and {"real": score["value"], "real_images": score["protocol"]["samples"]}
        joined[name] = record | (added or {})
    return joined
