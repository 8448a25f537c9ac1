"""How good samples are: every measure of a set of features against a reference, each number with its protocol."""

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
"""A metric: `value`, which way is `better`, the `protocol` under which it may be compared, and what else is known."""

Measure = Literal["frechet", "kernel", "inception_score", "neighbours", "frechet_infinity"]

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in Binkowski et al. 2018 and torch-fidelity
SPLITS = 10  # of the Inception Score (Salimans et al. 2016)
BLOCK = 2000  # rows of features in memory
SHOWN_CLASSES = 100  # most classes whose counts are worth a record


@dataclass(frozen=True)
class Features:
    """Features of a set of images: their moments, and rows of them (all, or as many as were kept)."""

    moments: Moments
    rows: Any

    @classmethod
    def of(cls, rows: Any) -> Features:
        """From all rows, read in blocks."""
        return cls(moments(rows), rows)


@dataclass(frozen=True)
class Reference:
    """What samples are held against: its word in names ("train"), its statistics, and its part of the protocol."""

    word: str
    statistics: Statistics
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """Applies measures to features.

    Args:
        extractor: whose features they are.
        reference: what they are held against.
        measures: which numbers are wanted; those that the reference or the extractor cannot serve are left out.
        neighbours: rows at most that precision, recall, density and coverage look at, on each side.
        device: where distances between rows are computed.
    """

    extractor: Extractor
    reference: Reference
    measures: Sequence[Measure]
    neighbours: int = 10_000
    device: torch.device | str = "cpu"

    def __call__(self, features: Features) -> dict[str, Record]:
        """Name -> record of every measure that can be taken."""
        records: dict[str, Record] = {}
        count = len(features.rows)
        for measure in self.served(count):
            kind = MEASURES[measure]
            records |= zip(kind.names(self, count), kind.records(self, features), strict=True)
        return records

    def served(self, count: int) -> list[Measure]:
        """The measures that can be taken of `count` samples."""
        return [measure for measure in self.measures if self.lacks(measure, count) is None]

    def lacks(self, measure: Measure, count: int) -> str | None:
        """Why a measure cannot be taken of `count` samples, or None."""
        kind, statistics = MEASURES[measure], self.reference.statistics
        features, known = statistics.features, statistics.moments.count
        if count < kind.least:
            return f"{measure} needs {kind.least} samples, there are {count}"
        if known is not None and known < kind.reference:
            return f"{measure} needs {kind.reference} reference images, {self.reference.word} has {known}"
        if kind.needs == "classes" and not self.extractor.classes:
            return f"{measure} needs class scores, which the {self.extractor.name} features do not give"
        if kind.needs == "features" and features is None:
            return f"{measure} needs features beside mu and sigma, which the reference does not hold"
        if kind.needs == "features" and len(features) < kind.reference:
            return f"{measure} needs features of {kind.reference} reference images, there are {len(features)}"
        return None

    def names(self, count: int) -> list[str]:
        """Names of the records over `count` samples."""
        return [name for measure in self.served(count) for name in MEASURES[measure].names(self, count)]

    def name(self, word: str, count: int | str) -> str:
        """A metric's name with what it is measured against: `fid_inception_train_50k`."""
        shown = count if isinstance(count, str) else sample_count(count)
        return f"{word}_{self.extractor.name}_{self.reference.word}_{shown}"

    def record(self, value: float, better: Literal["lower", "higher"], count: int, **protocol: Any) -> Record:
        """A record; its protocol is what must be equal for two numbers to be compared."""
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
        """How many rows the extractor takes for each class."""
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
        protocol = {**self.extractor.protocol(), "samples": count, "splits": result.splits}  # there is no reference
        return [
            {
                "value": result.value,
                "better": "higher",
                "standard_deviation": result.standard_deviation,
                "protocol": protocol,
            }
        ]

    def near(self, features: Features) -> list[Record]:
        real, fake = (rows[: self.neighbours] for rows in (self.reference.statistics.features, features.rows))
        scores = neighbour_scores(fake, real, 3, 5, self.device)
        return [
            self.record(getattr(scores, word), "higher", len(fake), neighbours=k, reference_rows=len(real))
            for word, k in NEIGHBOURS.items()
        ]


NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""Which neighbour's distance is a point's radius (Kynkäänniemi et al. 2019; Naeem et al. 2020)."""


@dataclass(frozen=True)
class _Kind:
    """A measure: its names for a number of samples, its records, what it needs beside moments, of how many images."""

    names: Callable[[Scorer, int], list[str]]
    records: Callable[[Scorer, Features], list[Record]]
    needs: Literal["moments", "classes", "features"]
    least: int = 2
    reference: int = 2


MEASURES: dict[str, _Kind] = {
    "frechet": _Kind(lambda j, n: [j.name(j.extractor.short, n)], Scorer.frechet, "moments"),
    "frechet_infinity": _Kind(
        lambda j, n: [j.name(j.extractor.short, "infinity")], Scorer.frechet_infinity, "moments", 1000
    ),
    "kernel": _Kind(lambda j, n: [j.name({"fid": "kid"}.get(j.extractor.short, "kd"), n)], Scorer.kernel, "features"),
    "inception_score": _Kind(
        lambda j, n: [f"inception_score_{j.extractor.name}_{sample_count(n)}"],
        Scorer.inception_score,
        "classes",
        reference=0,
    ),
    "neighbours": _Kind(
        lambda j, n: [j.name(word, min(n, j.neighbours)) for word in NEIGHBOURS], Scorer.near, "features", 6, 6
    ),
}


CHARTS = (
    *("fid", "fd", "kid", "kd", "inception_score", *NEIGHBOURS),
    *("sliced_wasserstein", "energy_distance", "log_density", "mode_weight_error"),
)
"""Names of metrics without what they are measured against."""


def chart_name(name: str) -> str:
    """A metric's name without extractor, reference and count, equal in all runs: fid_inception_train_50k is fid."""
    prefix = "raw_" if name.startswith("raw_") else ""
    bare = name.removeprefix(prefix)
    word = next((word for word in CHARTS if bare.startswith(f"{word}_")), bare)
    return prefix + word + ("_infinity" if bare.endswith("_infinity") else "")


KEPT = ("better", "extrapolated")
"""What repeats of a record share; their errors and counts are each one's own."""


def repeated(runs: Sequence[dict[str, Record]]) -> dict[str, Record]:
    """The records of several disjoint ranges of seeds as one: the mean is the value, minimum and all stand beside."""
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
    """Each record beside what real images, perhaps of another number, score by the same measure."""
    scores = {name.rpartition("_")[0]: record for name, record in real.items()}
    joined = {}
    for name, record in records.items():
        # A limit for infinitely many samples has nothing to do with what a finite number of images scores.
        score = None if record.get("extrapolated") else scores.get(name.rpartition("_")[0])
        beside = score and {"real": score["value"], "real_images": score["protocol"]["samples"]}
        joined[name] = record | (beside or {})
    return joined
