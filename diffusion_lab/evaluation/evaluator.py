"""What is measured of a model, put together: quality of its samples, likelihood of held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation import reference as references
from diffusion_lab.evaluation.agreement import agreement, agreement_names
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.likelihood import likelihood_name, score_likelihood
from diffusion_lab.evaluation.reference import Reference
from diffusion_lab.evaluation.sample_store import SampleStore, share
from diffusion_lab.evaluation.scorer import MEASURES, Features, Measure, Record, Scorer, repeated, with_real
from diffusion_lab.evaluation.toy2d import point_names, score_points
from diffusion_lab.metric import Extractor
from diffusion_lab.model import Model

SPLITS = {"train": "held_out", "held_out": "train"}
"""Splits, each with the one whose images show what a perfect model would score."""


class Evaluator:
    """Scores samples against a reference, and held-out data under the model, on all ranks together.

    Args:
        features: extractor of image features; None for points in the plane.
        samples: how many samples are scored.
        reference: what they are held against: "train" (as published FIDs are), "held_out", or a .npz of statistics.
        measures: which numbers; those that extractor or reference cannot serve are left out.
        repeats: over how many disjoint ranges of the series, `samples` each, every number is taken; the mean is
            reported with the smallest and all of them.
        neighbours: rows at most for precision, recall, density and coverage.
        likelihood_samples: over how many held-out items the likelihood is averaged; None takes all, 0 none.
        likelihood_repeats: passes over them, each with other noise.
        batch_size: of sampling; part of what decides the last digits of a sample.
        likelihood_batch_size: of the likelihood, which may need the memory of a backward pass.
        seed: of the samples and of the likelihood's noise.
        cache: directory where the statistics of data sets are kept.

    Raises:
        ValueError: for a measure or a reference that does not exist.
    """

    def __init__(
        self,
        features: Extractor | None = None,
        samples: int = 1000,
        reference: str = "held_out",
        measures: Sequence[str] = ("frechet", "kernel", "inception_score", "neighbours"),
        repeats: int = 1,
        neighbours: int = 10_000,
        likelihood_samples: int | None = None,
        likelihood_repeats: int = 1,
        batch_size: int = 500,
        likelihood_batch_size: int = 100,
        seed: int = 0,
        cache: str = "logs/statistics",
    ) -> None:
        unknown = [measure for measure in measures if measure not in MEASURES]
        if unknown:
            raise ValueError(f"metric.measures: {unknown[0]} is unknown; allowed: {', '.join(MEASURES)}")
        if reference not in SPLITS and not reference.endswith(".npz"):
            raise ValueError(f"metric.reference={reference} must be train, held_out or a .npz file of statistics")
        if samples < 2:
            raise ValueError(f"{samples} sample cannot be scored: draw at least 2")
        self.features, self.samples, self.reference = features, samples, reference
        self.measures: Sequence[Measure] = measures
        self.repeats, self.neighbours = repeats, neighbours
        self.likelihood_samples, self.likelihood_repeats = likelihood_samples, likelihood_repeats
        self.batch_size, self.likelihood_batch_size = batch_size, likelihood_batch_size
        self.seed, self.cache = seed, Path(cache)
        self.unsuited = ""  # name of features that were asked for of data which are no images
        self.cost: tuple[float, float] | None = None  # (network evaluations, samples a second) of the latest samples
        self._loaded: dict[str, Reference] = {}
        self._real: dict[tuple[Path, ...], dict[str, Record]] = {}

    def prepare(self, data: DataModule, device: torch.device) -> None:
        """Fit or load the extractor; call it early, so that a missing file is known before anything long.

        Raises:
            FileNotFoundError: if the extractor's weights are not there.
            ValueError: if the reference is not there, or was measured under another protocol.
        """
        if self.features is not None and data.grey_levels is None:  # latents, fields: there is no image to look at
            self.unsuited, self.features = self.features.name, None
        if self.features is None:
            return
        references.prepare(self.features, data, device)
        if self.reference not in SPLITS:
            if not Path(self.reference).is_file():
                raise ValueError(f"metric.reference={self.reference} does not exist: use train, held_out, or make it")
            self.loaded(self.reference)

    def __call__(self, model: Model, data: DataModule, folder: Path) -> dict[str, Record]:
        """All metrics, name -> record; what is drawn and measured on the way is kept under `folder`."""
        series = SampleStore(folder, model, seed=self.seed, batch_size=self.batch_size)
        return {**self.quality(series, data), **self.likelihood(model, data, folder)}

    def quality(self, series: SampleStore, data: DataModule) -> dict[str, Record]:
        """Metrics of the first `samples` x `repeats` samples of a series, drawn now if they are not there."""
        total = self.samples * self.repeats
        if not self.judges_samples(data):
            return {}
        series.complete(total)
        if self.features is not None:
            records = self.image_quality(series, data, total)
        else:
            records = ranks.on_first(lambda: repeated([score_points(p, data) for p in self.points(series)]))
        records |= ranks.on_first(lambda: agreement(series, self.features, data, self.samples, self.repeats))
        self.cost = ranks.on_first(lambda: series.cost(total))
        return series.noted({name: {**record, "nfe": self.cost[0]} for name, record in records.items()})

    def image_quality(self, series: SampleStore, data: DataModule, total: int) -> dict[str, Record]:
        """Every measure of the samples' features against the reference's, beside that of real images."""
        extractor, device = self.features, series.model.device
        store = series.features(extractor)
        share(store, total, lambda chunk: store.write(chunk, extractor(series.chunk(chunk).to(device))), "features")
        paths = {}
        if self.reference in SPLITS and data.size(self.reference) > 1:
            options = (extractor, device, self.cache)
            paths["reference"] = references.measure(data, self.reference, *options, batch_size=self.batch_size)
            other = SPLITS[self.reference]
            if data.size(other) > 1:
                paths["real"] = references.measure(
                    data, other, *options, count=self.samples, batch_size=self.batch_size
                )

        def judge() -> dict[str, Record]:
            judge = self.judge_to_be(data)  # that of a set too small for any measure is all that is known of it
            if paths or self.reference not in SPLITS:
                against = self.loaded(paths.get("reference", self.reference), self.word)
                judge = Scorer(extractor, against, self.measures, self.neighbours, device)
            records = repeated([judge(Features.of(rows)) for rows in self.spans(store)])
            return self.beside_real(records, judge, tuple(paths.values())) if "real" in paths else records

        return ranks.on_first(judge)

    def points(self, series: SampleStore) -> Iterator[Tensor]:
        """The samples of each repeat as the data are: images of many channels in [0, 1]."""
        for rows in self.spans(series.samples):
            yield rows[:].permute(0, 3, 1, 2).float() / 255 if series.images else rows[:]

    def loaded(self, path: str | Path, word: str | None = None) -> Reference:
        """The reference in a file, read once: what it costs to decompose its covariance is kept with it."""
        if str(path) not in self._loaded:
            self._loaded[str(path)] = references.load(path, self.features, word)
        return self._loaded[str(path)]

    @property
    def word(self) -> str | None:
        """The reference's word in names; None takes that of its file."""
        return self.reference if self.reference in SPLITS else None

    def beside_real(self, records: dict[str, Record], judge: Scorer, paths: tuple[Path, ...]) -> dict[str, Record]:
        """Records beside what real images of the other split score, against the same reference, measured once."""
        if paths not in self._real:
            statistics = self.loaded(paths[1]).statistics
            measures = [m for m in judge.measures if m != "frechet_infinity"]  # of features, that are not all kept
            real = dataclasses.replace(judge, measures=measures)
            self._real[paths] = real(Features(statistics.moments, statistics.features))
        return with_real(records, self._real[paths])

    def spans(self, store: ChunkedArray) -> list[Rows]:
        """The rows of each repeat."""
        return [Rows(store, range(i * self.samples, (i + 1) * self.samples)) for i in range(self.repeats)]

    def judges_samples(self, data: DataModule) -> bool:
        """Whether there is anything to judge samples by: features of images, or distances of points and the like."""
        if self.features is not None:
            return True
        return (data.grey_levels is None or data.shape[0] not in (1, 3)) and data.size("held_out") > 0

    def likelihood(self, model: Model, data: DataModule, folder: Path) -> dict[str, Record]:
        """The model's likelihoods of held-out data, split in their terms."""
        records: dict[str, Record] = {}
        for name in model.likelihood if self.likelihood_items(data) else ():
            records |= score_likelihood(
                model,
                name,
                data,
                folder,
                self.likelihood_samples,
                self.likelihood_repeats,
                self.likelihood_batch_size,
                self.seed,
            )
        return records

    def likelihood_items(self, data: DataModule) -> int:
        """Over how many held-out items the likelihood is averaged."""
        size = data.size("held_out")
        return size if self.likelihood_samples is None else min(self.likelihood_samples, size)

    def names(self, model: Model, data: DataModule) -> list[str]:
        """Names of the metrics, known before anything is measured."""
        words = [likelihood_name(model, name) for name in model.likelihood] if self.likelihood_items(data) else []
        if not self.judges_samples(data):
            return words
        words = [*agreement_names(model, self.features, data, self.samples), *words]
        if self.features is None:
            return [*point_names(data, self.samples), *words]
        return [*self.judge_to_be(data).names(self.samples), *words]

    def left_out(self, data: DataModule, likelihood: bool = False) -> list[str]:
        """Why measures that were asked for, the likelihood among them, will not be taken, a line each."""
        empty = likelihood and self.likelihood_samples != 0 and not data.size("held_out")
        lines = ["the likelihood needs held-out items, and there are none"] if empty else []
        if self.unsuited:
            name = type(data).__name__
            lines.append(f"{self.unsuited} features are of images, and {name} has no grey levels: distances are taken")
        if self.features is None:
            return lines
        judge = self.judge_to_be(data)
        return lines + [reason for measure in self.measures if (reason := judge.lacks(measure, self.samples))]

    def cautions(self, data: DataModule) -> list[str]:
        """What to know of numbers that can be taken and say little."""
        if self.features is None or not {"frechet", "frechet_infinity"} & set(self.measures):
            return []
        known = self.judge_to_be(data).reference.statistics.moments.count
        few = {"samples": self.samples, "reference images": known}
        size = self.features.dimensions
        return [
            f"{count} {what} for {size} dimensions: the Fréchet distance is mostly the bias of so few"
            for what, count in few.items()
            if count is not None and 2 <= count <= self.features.dimensions
        ]

    def judge_to_be(self, data: DataModule) -> Scorer:
        """The judge as far as it is known before anything is measured."""
        if self.reference in SPLITS:
            size = data.size(self.reference)
            kept = range(min(size, references.KEPT))  # rows of features that there will be beside the moments
            found = SimpleNamespace(features=kept, moments=SimpleNamespace(count=size))
            against = Reference(self.reference, found, {})
        else:
            against = self.loaded(self.reference)
        return Scorer(self.features, against, self.measures, self.neighbours)

    def plan(self, model: Model, data: DataModule, with_likelihood: bool = True) -> str:
        """What is measured, in one line."""
        parts = []
        if self.judges_samples(data):
            which = ", ".join(self.judge_to_be(data).served(self.samples)) if self.features else "distances"
            times = f"{self.repeats} x " if self.repeats > 1 else ""
            against = self.reference if self.features else "held_out"
            parts.append(f"{times}{self.samples:,} samples against {against} ({which})")
        if with_likelihood and model.likelihood and (items := self.likelihood_items(data)):
            passes = f", {self.likelihood_repeats} times" if self.likelihood_repeats > 1 else ""
            parts.append(f"likelihood ({', '.join(model.likelihood)}) of {items:,} held-out items{passes}")
        return "; ".join(parts) or "nothing to measure"
