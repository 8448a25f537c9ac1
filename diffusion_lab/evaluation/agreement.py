"""Label agreement: the fraction of conditional samples that a classifier assigns to their label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.data.toy2d_density import nearest_mode
from diffusion_lab.evaluation.chunked_array import Rows
from diffusion_lab.evaluation.sample_store import SampleStore
from diffusion_lab.evaluation.scorer import BLOCK, Record, repeated, with_real
from diffusion_lab.metric import Extractor, sample_count
from diffusion_lab.model import Model

REAL = 1000
"""Largest number of held-out items for the classifier's accuracy on real data."""

Classifier = Callable[[Tensor], Tensor]
"""Features of images (B, ...), or points, -> the class (B,) of each."""


def classifier(model: Model, extractor: Extractor | None, data: DataModule) -> tuple[str, Classifier] | None:
    """Return the name and function of a classifier for samples with labels, or None.

    For images this is the classifier of the feature extractor if it has as many classes as the model; for points it is
    the nearest mode of their distribution.
    """
    modes = getattr(getattr(data, "target", None), "modes", None)
    labels = model.sampled_labels()
    if labels is None:
        return None
    if extractor is None:
        return None if modes is None else ("modes", lambda points: nearest_mode(points, modes))
    if extractor.classes != labels.classes:
        return None
    return extractor.name, lambda features: extractor.logits(features).argmax(1)


def metric_name(classifier_name: str, count: int) -> str:
    """Return the name of the metric."""
    return f"label_agreement_{classifier_name}_{sample_count(count)}"


def agreement_names(model: Model, extractor: Extractor | None, data: DataModule, count: int) -> list[str]:
    """Return the names of the metrics of `count` samples."""
    found = classifier(model, extractor, data)
    return [] if found is None else [metric_name(found[0], count)]


def agreement(
    store: SampleStore, extractor: Extractor | None, data: DataModule, count: int, repeats: int
) -> dict[str, Record]:
    """Return the fraction of `count` samples classified as their label, for `repeats` disjoint ranges of samples.

    The record also has this fraction for held-out data, an upper bound set by the classifier.  Without a classifier the
    result is empty.
    """
    found = classifier(store.model, extractor, data)
    if found is None:
        return {}
    name, classify = found
    features = store.samples if extractor is None else store.features(extractor)
    protocol = {} if extractor is None else extractor.protocol()
    spans = [range(i * count, (i + 1) * count) for i in range(repeats)]
    runs = [accuracy(name, classify, Rows(features, span), store.labels(span), protocol) for span in spans]
    real = data.images("held_out", REAL)
    rows = real if extractor is None else extractor(real.to(store.model.device))
    return with_real(repeated(runs), accuracy(name, classify, rows, data.labels("held_out", REAL), protocol))


def accuracy(
    name: str, classify: Classifier, rows: Tensor | Rows, labels: Tensor, protocol: dict[str, Any]
) -> dict[str, Record]:
    """Return the fraction of rows classified as their label, overall and by class."""
    parts = [classify(rows[i : i + BLOCK]).cpu() for i in range(0, len(rows), BLOCK)]
    correct = (torch.cat(parts) == labels).double()
    fraction = correct.mean().item()
    record = {
        "value": fraction,
        "better": "higher",
        "standard_error": (fraction * (1 - fraction) / len(correct)) ** 0.5,
        "by_class": {str(k): correct[labels == k].mean().item() for k in labels.unique().tolist()},
        "protocol": {**protocol, "classifier": name, "samples": len(correct)},
    }
    return {metric_name(name, len(correct)): record}
