"""Checks of metrics: feature extractors on images, and distances between sets on Gaussians and shifted sets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.metric import (
    FeatureMoments,
    Moments,
    energy_distance,
    frechet_distance,
    kernel_distance,
    moments,
    neighbour_scores,
    sliced_wasserstein,
)
from diffusion_lab.verification.check import Chart, Check, Finding, largest, relative, seeded

ROWS, CLASSES = 96, 4
"""Images, and their classes."""

Distance = Callable[[Tensor, Tensor], float]
"""Two sets (N, D) and (M, D), float64 -> a distance."""

DISTANCES: dict[str, tuple[Distance, float]] = {
    "Fréchet distance": (lambda x, y: frechet_distance(moments(x), moments(y)), 1e-9),
    "kernel distance": (lambda x, y: kernel_distance(x, y, 1, min(len(x), len(y))).value, math.inf),
    "energy distance": (energy_distance, 1e-9),
    "sliced Wasserstein distance": (sliced_wasserstein, 1e-9),
}
"""Our distances, and the tolerance of the distance of a set to itself; the kernel distance is unbiased, not 0 there."""


def check_metric(extractor: Any, shape: Sequence[int]) -> Iterator[Finding]:
    """Yield the checks of an extractor of images of `shape` (None: of points), and of the distances of its features.

    Raises:
        ValueError: if it cannot be prepared.
    """
    if extractor is None:
        x = torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded())
    else:
        images, labels = pictures(shape)
        extractor = copy.copy(extractor)
        if getattr(extractor, "learned", False) and hasattr(extractor, "steps"):
            extractor.steps = min(extractor.steps, 30)  # what it learns is not checked
        extractor.prepare(images, labels, "cpu")
        yield from check_extractor(extractor, images)
        x = extractor(images).double()
        spread = x.std(0).sort(descending=True).values
        line = [(index + 1, value) for index, value in enumerate(spread.tolist())]
        yield Chart("features", "feature, sorted", "standard deviation over images", {"": line})
    for name, (distance, tolerance) in DISTANCES.items():
        yield from check_distance(name, distance, x, tolerance)
    yield from check_closed_forms()


def pictures(shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (ROWS, C, H, W) in [0, 1] of stripes of a direction for each class, with noise, and their labels."""
    if len(shape) != 3:
        raise ValueError(f"features are of images, and data.shape={list(shape)} is of points: choose another data=NAME")
    _, height, width = shape
    labels = torch.arange(ROWS) % CLASSES
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    angle = (labels * math.pi / CLASSES)[:, None, None]
    stripes = (12 * (x * angle.cos() + y * angle.sin())).sin()
    noise = torch.randn(ROWS, *shape, generator=seeded())
    return (0.5 + 0.3 * stripes[:, None] + 0.1 * noise).clamp(0, 1), labels


def check_extractor(extractor: Any, images: Tensor) -> Iterator[Check]:
    """One float32 feature vector for each image, whatever its batch; and the images are left as they are."""
    before = images.clone()
    features = extractor(images)
    yield Check("dimensions of a feature vector", features.shape[-1], extractor.dimensions)
    yield Check("feature vectors", len(features), ROWS)
    yield Check("features that are not finite", int((~features.isfinite()).sum()))
    yield Check("features that are not float32", int(features.dtype != torch.float32))
    yield Check("change of the images", largest(images - before))
    yield Check("a second call - the first", relative(extractor(images), features), 0.0, 1e-5)
    halves = torch.cat([extractor(part) for part in images.split(ROWS // 2 - 1)])
    yield Check("in parts - in one batch", relative(halves, features), 0.0, 1e-4)
    order = torch.randperm(ROWS, generator=seeded())
    yield Check("in another order - in order", relative(extractor(images[order]), features[order]), 0.0, 1e-4)
    yield Check("largest standard deviation of a feature over images", features.std(0).max().item(), 1e-6, 0.0, ">=")
    yield Check("without a digest", int(not getattr(extractor, "digest", "")))
    if getattr(extractor, "classes", 0):
        logits = extractor.logits(features)
        yield Check("logits of an image", logits.shape[-1], extractor.classes)


def check_distance(name: str, distance: Distance, x: Tensor, itself: float = 1e-9) -> Iterator[Check]:
    """Yield the checks of a distance on rows x (N, D): of a set to itself, symmetry, order, and a shift."""
    first, second = x[: len(x) // 2], x[len(x) // 2 :] * 1.3 + x.std()
    scale = distance(first, second) or 1.0
    if itself < math.inf:
        yield Check(f"{name} of a set to itself, of another's", distance(first, first) / scale, 0.0, max(itself, 1e-6))
    yield Check(f"{name}: b to a / a to b", distance(second, first) / scale, 1.0, 1e-6)
    order = torch.randperm(len(first), generator=seeded())
    yield Check(f"{name} in another order / in order", distance(first[order], second) / scale, 1.0, 1e-6)
    far = distance(first, second + 3 * x.std())
    yield Check(f"{name} of a farther set / of the nearer", far / scale, 1.0, 0.0, ">=")


def check_closed_forms() -> Iterator[Check]:
    """Exact values: Gaussians, shifted sets, two points, and equal sets."""
    generator = seeded()
    basis, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))
    one, two = (torch.rand(5, dtype=torch.float64, generator=generator) + 0.1 for _ in range(2))
    mean = torch.randn(5, dtype=torch.float64, generator=generator)
    a, b = (Moments(m, basis @ torch.diag(s) @ basis.T) for m, s in ((mean, one), (0 * mean, two)))
    want = (mean.square().sum() + (one.sqrt() - two.sqrt()).square().sum()).item()
    yield Check("Fréchet distance of two Gaussians / closed form", frechet_distance(a, b) / want, 1.0, 1e-9)
    x = torch.randn(60, 5, dtype=torch.float64, generator=generator)
    batches = FeatureMoments()
    for part in x.split(7):
        batches.update(part)
    found, whole = batches.result(), moments(x)
    yield Check("covariance from batches - in one", largest(found.covariance - whole.covariance), 0.0, 1e-12)
    yield Check("covariance - its definition", largest(whole.covariance - torch.cov(x.T)), 0.0, 1e-12)
    line = x[:, :1]
    yield Check("sliced Wasserstein distance of a set shifted by 2", sliced_wasserstein(line, line + 2), 2.0, 1e-9)
    points = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    yield Check("energy distance of two points at distance 3", energy_distance(points[:1], points[1:]), 6.0, 1e-9)
    scores = neighbour_scores(x, x)
    yield Check("precision of a set in itself", scores.precision, 1.0)
    yield Check("recall of a set in itself", scores.recall, 1.0)
    kernel = kernel_distance(x[:2], x[2:4], 1, 2).value
    k = (torch.cat([x[:2], x[2:4]]) @ torch.cat([x[:2], x[2:4]]).T / 5 + 1) ** 3
    want = (k[0, 1] + k[2, 3] - k[:2, 2:].mean() * 2).item()
    yield Check("kernel distance of two pairs - its definition", kernel - want, 0.0, 1e-9)
