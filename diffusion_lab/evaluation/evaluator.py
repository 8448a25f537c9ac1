"""Evaluator: all metrics of a model, the quality of its samples and the likelihood of held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation import reference as references
from diffusion_lab.evaluation.agreement import agreement, agreement_names
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.likelihood import likelihood_name, score_likelihood
from diffusion_lab.evaluation.reference import Reference
from diffusion_lab.evaluation.sample_store import SampleStore
from diffusion_lab.evaluation.scorer import Features, Measure, Record, Scorer, repeated, with_real
from diffusion_lab.evaluation.seconds import Seconds
from diffusion_lab.evaluation.toy2d import point_names, score_points
from diffusion_lab.metric import Extractor
from diffusion_lab.model import Model
from diffusion_lab.ranges import Count, NonNegativeInt, SampleSize, Seed, checked

SPLITS = {"train": "held_out", "held_out": "train"}
"""Reference split -> the split whose images are scored as real data, to show the score of a perfect model."""


class Evaluator:
    """Compares samples with a reference and computes the likelihood of held-out data, distributed over all ranks.

    Args:
        features: extractor of image features; None for points in the plane.
        samples: number of samples.
        reference: "train" (as for published FIDs), "held_out", or a .npz file of statistics.
        measures: metrics to compute; those that the extractor or the reference does not support are skipped.
        repeats: number of disjoint sets of `samples` samples for every metric; mean, minimum, maximum and all values
            are reported.
        neighbours: largest number of rows for precision, recall, density and coverage.
        likelihood_samples: number of held-out items for the likelihood; None takes all, 0 skips it.
        likelihood_repeats: passes over them, each with new noise.
        batch_size: of sampling; it affects rounding errors of the samples.
        likelihood_batch_size: of the likelihood, which may need the memory of a backward pass.
        seed: of the samples and of the likelihood's noise.
        cache: directory for statistics of data sets.

    Raises:
        ValueError: for an unknown measure or reference.
    """

    @checked
    def __init__(
        self,
        features: Extractor | None = None,
        samples: SampleSize = 1000,
        reference: str = "held_out",
        measures: Sequence[Measure] = ("frechet", "kernel", "inception_score", "neighbours"),
        repeats: Count = 1,
        neighbours: Annotated[int, Ge(6)] = 10_000,
        likelihood_samples: NonNegativeInt | None = None,
        likelihood_repeats: Count = 1,
        batch_size: Count = 500,
        likelihood_batch_size: Count = 100,
        seed: Seed = 0,
        cache: str = "logs/statistics",
    ) -> None:
        if reference not in SPLITS and not reference.endswith(".npz"):
            raise ValueError(f"metric.reference={reference} must be train, held_out or a .npz file of statistics")
        self.features, self.samples, self.reference = features, samples, reference
        self.measures = measures
        self.repeats, self.neighbours = repeats, neighbours
        self.likelihood_samples, self.likelihood_repeats = likelihood_samples, likelihood_repeats
        self.batch_size, self.likelihood_batch_size = batch_size, likelihood_batch_size
        self.seed, self.cache = seed, Path(cache)
        self.skipped_features = ""  # name of the extractor, if the data have no grey levels
        self.cost: tuple[float, float] | None = None  # (NFE, samples/s) of the latest samples
        self.seconds = Seconds()  # of each part since they were cleared
        self._loaded: dict[str, Reference] = {}
        self._real: dict[tuple[Path, ...], dict[str, Record]] = {}

    def prepare(self, data: DataModule, device: torch.device) -> None:
        """Train or load the extractor; call it early, so that a missing file is reported before anything long.

        Raises:
            FileNotFoundError: if the extractor's weights are missing.
            ValueError: if the reference is missing, or was measured under another protocol.
        """
        if self.features is not None and data.grey_levels is None:  # latents or fields, not images
            self.skipped_features, self.features = self.features.name, None
        if self.features is None:
            return
        references.prepare(self.features, data, device)
        if self.reference not in SPLITS:
            if not Path(self.reference).is_file():
                raise ValueError(f"metric.reference={self.reference} does not exist: use train, held_out, or create it")
            self.load_reference(self.reference)

    def __call__(self, model: Model, data: DataModule, folder: Path) -> dict[str, Record]:
        """Return all metrics, name -> record; samples and intermediate results are stored under `folder`."""
        store = SampleStore(folder, model, seed=self.seed, batch_size=self.batch_size)
        return {**self.quality(store, data), **self.likelihood(model, data, folder)}

    def quality(self, store: SampleStore, data: DataModule) -> dict[str, Record]:
        """Return the metrics of the first `samples` x `repeats` samples of a store; missing samples are generated."""
        if not self.scores_samples(data):
            return {}
        with self.seconds.of("sampling"):
            extraction = store.complete(self.total, self.features, self.total)
        self.seconds.move(extraction, "sampling", "features")
        if self.features is not None:
            records = self.image_quality(store, data)
        else:
            with self.seconds.of("metrics"):
                records = ranks.on_first(lambda: repeated([score_points(p, data) for p in self.points(store)]))
        with self.seconds.of("metrics"):
            records |= ranks.on_first(lambda: agreement(store, self.features, data, self.samples, self.repeats))
        self.cost = ranks.on_first(lambda: store.cost(self.total))
        return store.annotate({name: {**record, "nfe": self.cost[0]} for name, record in records.items()})

    @property
    def total(self) -> int:
        """Number of samples of all repeats."""
        return self.samples * self.repeats

    def image_quality(self, store: SampleStore, data: DataModule) -> dict[str, Record]:
        """Return every measure of the samples' features relative to the reference, with the values of real images."""
        extractor, device = self.features, store.model.device
        with self.seconds.of("features"):
            features = store.complete_features(extractor, self.total)
        with self.seconds.of("reference"):
            paths = self.measure_references(data, device)

        def score() -> dict[str, Record]:
            scorer = self.planned_scorer(data)  # used if the reference is too small for any measure
            if paths or self.reference not in SPLITS:
                name = self.reference if self.reference in SPLITS else None
                reference = self.load_reference(paths.get("reference", self.reference), name)
                scorer = Scorer(extractor, reference, self.measures, self.neighbours, device)
            records = repeated([scorer(Features.of(rows)) for rows in self.spans(features)])
            return self.add_real(records, scorer, tuple(paths.values())) if "real" in paths else records

        with self.seconds.of("metrics"):
            return ranks.on_first(score)

    def measure_references(self, data: DataModule, device: torch.device) -> dict[str, Path]:
        """Return the files of statistics of the reference split, and of the other one as real images; both may lack."""
        paths: dict[str, Path] = {}
        if self.reference in SPLITS and data.size(self.reference) > 1:
            measure = partial(references.measure, data, batch_size=self.batch_size)
            where = self.features, device, self.cache
            paths["reference"] = measure(self.reference, *where)
            if data.size(other := SPLITS[self.reference]) > 1:
                paths["real"] = measure(other, *where, count=self.samples)
        return paths

    def points(self, store: SampleStore) -> Iterator[Tensor]:
        """Yield the samples of each repeat in the format of the data: points, or images of any channels in [0, 1]."""
        for rows in self.spans(store.samples):
            yield rows[:].permute(0, 3, 1, 2).float() / 255 if store.images else rows[:]

    def load_reference(self, path: str | Path, name: str | None = None) -> Reference:
        """Load the reference in a file, once: it caches the decomposition of its covariance."""
        if str(path) not in self._loaded:
            self._loaded[str(path)] = references.load(path, self.features, name)
        return self._loaded[str(path)]

    def add_real(self, records: dict[str, Record], scorer: Scorer, paths: tuple[Path, ...]) -> dict[str, Record]:
        """Add the values of real images of the other split, relative to the same reference, computed once."""
        if paths not in self._real:
            statistics = self.load_reference(paths[1]).statistics
            measures = [m for m in scorer.measures if m != "frechet_infinity"]  # needs all features
            real = dataclasses.replace(scorer, measures=measures)
            self._real[paths] = real(Features(statistics.moments, statistics.features))
        return with_real(records, self._real[paths])

    def spans(self, store: ChunkedArray) -> list[Rows]:
        """Return the rows of each repeat."""
        return [Rows(store, range(i * self.samples, (i + 1) * self.samples)) for i in range(self.repeats)]

    def scores_samples(self, data: DataModule) -> bool:
        """Whether samples can be evaluated: by features of images, or by distances (points, fields)."""
        if self.features is not None:
            return True
        return (data.grey_levels is None or data.shape[0] not in (1, 3)) and data.size("held_out") > 0

    def likelihood(self, model: Model, data: DataModule, folder: Path) -> dict[str, Record]:
        """Return the model's likelihoods of held-out data, with their terms."""
        records: dict[str, Record] = {}
        for name in model.likelihood if self.likelihood_items(data) else ():
            counts = (self.likelihood_samples, self.likelihood_repeats, self.likelihood_batch_size)
            with self.seconds.of("likelihood"):
                records |= score_likelihood(model, name, data, folder, *counts, self.seed)
        return records

    def likelihood_items(self, data: DataModule) -> int:
        """Return the number of held-out items for the likelihood."""
        size = data.size("held_out")
        return size if self.likelihood_samples is None else min(self.likelihood_samples, size)

    def names(self, model: Model, data: DataModule) -> list[str]:
        """Return the names of the metrics, before anything is measured."""
        names = [likelihood_name(model, name) for name in model.likelihood] if self.likelihood_items(data) else []
        if not self.scores_samples(data):
            return names
        names = [*agreement_names(model, self.features, data, self.samples), *names]
        if self.features is None:
            return [*point_names(data, self.samples), *names]
        return [*self.planned_scorer(data).names(self.samples), *names]

    def left_out(self, data: DataModule, likelihood: bool = False) -> list[str]:
        """Return one line for each configured metric (and the likelihood) that cannot be computed, with the reason."""
        empty = likelihood and self.likelihood_samples != 0 and not data.size("held_out")
        lines = ["the likelihood needs held-out items, and there are none"] if empty else []
        if name := self.skipped_features:
            kind = type(data).__name__
            lines.append(f"{name} features need images, and {kind} has no grey levels: distances are used")
        if self.features is None:
            return lines
        scorer = self.planned_scorer(data)
        return lines + [reason for measure in self.measures if (reason := scorer.obstacle(measure, self.samples))]

    def warnings(self, data: DataModule) -> list[str]:
        """Return warnings about metrics that are strongly biased."""
        if self.features is None or not {"frechet", "frechet_infinity"} & set(self.measures):
            return []
        known = self.planned_scorer(data).reference.statistics.moments.count
        few = {"samples": self.samples, "reference images": known}
        return [
            f"{count} {what} for {self.features.dimensions} dimensions: the Fréchet distance is strongly biased"
            for what, count in few.items()
            if count is not None and 2 <= count <= self.features.dimensions
        ]

    def planned_scorer(self, data: DataModule) -> Scorer:
        """Return a scorer whose reference has the sizes, but not yet the statistics, of a split of the data."""
        if self.reference not in SPLITS:
            return Scorer(self.features, self.load_reference(self.reference), self.measures, self.neighbours)
        size = data.size(self.reference)
        sizes = SimpleNamespace(features=range(min(size, references.KEPT)), moments=SimpleNamespace(count=size))
        return Scorer(self.features, Reference(self.reference, sizes, {}), self.measures, self.neighbours)

    def plan(self, model: Model, data: DataModule, with_likelihood: bool = True) -> str:
        """Describe in one line what is measured."""
        parts = []
        if self.scores_samples(data):
            which = ", ".join(self.planned_scorer(data).supported(self.samples)) if self.features else "distances"
            times = f"{self.repeats} x " if self.repeats > 1 else ""
            reference = self.reference if self.features else "held_out"
            parts.append(f"{times}{self.samples:,} samples against {reference} ({which})")
        if with_likelihood and model.likelihood and (items := self.likelihood_items(data)):
            passes = f", {self.likelihood_repeats} times" if self.likelihood_repeats > 1 else ""
            parts.append(f"likelihood ({', '.join(model.likelihood)}) of {items:,} held-out items{passes}")
        return "; ".join(parts) or "nothing to measure"
