"""The Fréchet distance between sets of Inception-like features, beside the programs that people take it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffusion_lab.bench.race import Race, Setting, Work
from diffusion_lab.metric import Moments, frechet_distance, moments


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Features whose variances fall as 1/k, in directions of no axis; float32 as extractors give them."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator)).Q
    noise = torch.randn(count, dimensions, generator=generator.manual_seed(seed))
    return (noise / torch.arange(1, dimensions + 1).sqrt()) @ rotation


def fresh(x: Moments) -> Moments:
    """The same moments with nothing decomposed yet."""
    return Moments(x.mean, None if x.rows is not None else x.covariance, x.count, x.rows)


def agreement(values: Mapping[str, float]) -> str:
    """How far the others' distances are from ours, relative to it."""
    (_, ours), *others = values.items()
    return "relative difference to ours: " + ", ".join(f"{name} {abs(v - ours) / ours:.0e}" for name, v in others)


def from_moments(title: str, a: Moments, b: Moments, scipy: bool = False) -> Race:
    """Every program is given means and covariances; `b` is a reference, used many times."""
    frechet_distance(a, b)

    def torch_fidelity() -> Work:
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        both = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (a, b)]
        return lambda: fid_statistics_to_metric(*both, False)["frechet_inception_distance"]

    def torchmetrics() -> Work:
        from torchmetrics.image.fid import _compute_fid

        both = (a.mean, a.covariance, b.mean, b.covariance)
        return lambda: _compute_fid(*both).item()

    def sqrtm() -> Work:
        from scipy import linalg

        (m, s), (n, r) = ((x.mean.numpy(), x.covariance.numpy()) for x in (a, b))
        return lambda: float(((m - n) ** 2).sum() + (s + r - 2 * linalg.sqrtm(s @ r).real).trace())

    contestants: dict[str, Callable[[], Work]] = {
        "ours": lambda: lambda: frechet_distance(fresh(a), b),
        "ours (new reference)": lambda: lambda: frechet_distance(fresh(a), fresh(b)),
        "torch-fidelity": torch_fidelity,
        "torchmetrics": torchmetrics,
        **({"SciPy's sqrtm": sqrtm} if scipy else {}),
    }
    return Race(title, contestants, note=agreement)


def from_features(title: str, a: Tensor, b: Tensor) -> Race:
    """Means and covariances are part of the work."""

    def torch_fidelity() -> Work:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        def work() -> float:
            both = map(fid_features_to_statistics, (a.double(), b.double()))
            return fid_statistics_to_metric(*both, False)["frechet_inception_distance"]

        return work

    contestants = {"ours": lambda: lambda: frechet_distance(moments(a), moments(b)), "torch-fidelity": torch_fidelity}
    return Race(title, contestants, note=agreement)


def races(setting: Setting) -> Iterator[Race]:
    """Few samples against few, few against many, and many, where a covariance has full rank, against many."""
    few, many, dimensions = (40, 200, 64) if setting.small else (1000, 10_000, 2048)
    a, b = (features(few, dimensions, seed) for seed in (0, 1))
    yield from_features(f"Fréchet distance from {few} and {few} features of {dimensions} dimensions", a, b)
    small, small_reference = moments(a), moments(b)
    given = "Fréchet distance, given the moments of"
    yield from_moments(f"{given} {few} features and of {few}", small, small_reference)
    large, reference = (moments(features(many, dimensions, seed)) for seed in (2, 3))
    yield from_moments(f"{given} {few} features and of {many}", small, reference)
    yield from_moments(f"{given} {many} features and of {many}", large, reference, scipy=True)
