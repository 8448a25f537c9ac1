"""Whether samples are of the class that they were asked to be."""

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
"""Held-out items at most that the classifier is tried on."""

Classifier = Callable[[Tensor], Tensor]
"""Features of images (B, ...), or points, -> the class (B,) of each."""


def classifier(model: Model, extractor: Extractor | None, data: DataModule) -> tuple[str, Classifier] | None:
    """Who tells the classes of a conditional model's samples, by name; None where nobody can.

    The classifier behind the features of images, where it knows as many classes as the model; of points the nearest
    mode of their distribution.
    """
    modes = getattr(getattr(data, "target", None), "modes", None)
    if model.labels is None:
        return None
    if extractor is None:
        return None if modes is None else ("modes", lambda points: nearest_mode(points, modes))
    if extractor.classes != model.labels.classes:
        return None
    return extractor.name, lambda features: extractor.logits(features).argmax(1)


def name(who: str, count: int) -> str:
    """The metric's."""
    return f"label_agreement_{who}_{sample_count(count)}"


def agreement_names(model: Model, extractor: Extractor | None, data: DataModule, count: int) -> list[str]:
    """Names of the metrics of `count` samples."""
    found = classifier(model, extractor, data)
    return [] if found is None else [name(found[0], count)]


def agreement(
    series: SampleStore, extractor: Extractor | None, data: DataModule, count: int, repeats: int
) -> dict[str, Record]:
    """The share of `count` samples that are of the class asked for; nothing where nobody can tell.

    It stands beside that of held-out data, which is as good as the classifier.  `repeats` ranges of a series are taken.
    """
    found = classifier(series.model, extractor, data)
    if found is None:
        return {}
    who, classify = found
    store = series.samples if extractor is None else series.features(extractor)
    protocol = {} if extractor is None else extractor.protocol()
    spans = [range(i * count, (i + 1) * count) for i in range(repeats)]
    runs = [shares(who, classify, Rows(store, span), series.labels(span), protocol) for span in spans]
    real = data.images("held_out", REAL)
    rows = real if extractor is None else extractor(real.to(series.model.device))
    return with_real(repeated(runs), shares(who, classify, rows, data.labels("held_out", REAL), protocol))


def shares(
    who: str, classify: Classifier, rows: Tensor | Rows, labels: Tensor, protocol: dict[str, Any]
) -> dict[str, Record]:
    """The share of rows whose class is their label, of all and of each class."""
    parts = [classify(rows[i : i + BLOCK]).cpu() for i in range(0, len(rows), BLOCK)]
    right = (torch.cat(parts) == labels).double()
    share = right.mean().item()
    record = {
        "value": share,
        "better": "higher",
        "standard_error": (share * (1 - share) / len(right)) ** 0.5,
        "by_class": {str(k): right[labels == k].mean().item() for k in labels.unique().tolist()},
        "protocol": {**protocol, "classifier": who, "samples": len(right)},
    }
    return {name(who, len(right)): record}
