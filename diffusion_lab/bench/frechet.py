"""The Fréchet distance between sets of Inception-like features, compared with other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.metric import Moments, frechet_distance, moments


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Return float32 features with variances 1/k in random directions."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator)).Q
    noise = torch.randn(count, dimensions, generator=generator.manual_seed(seed))
    return (noise / torch.arange(1, dimensions + 1).sqrt()) @ rotation


def fresh(x: Moments) -> Moments:
    """Return the same moments without cached factors."""
    return Moments(x.mean, None if x.rows is not None else x.covariance, x.count, x.rows)


def agreement(values: Mapping[str, float]) -> str:
    """Report the relative difference of the others' distances from ours."""
    (_, ours), *others = values.items()
    return "relative difference to ours: " + ", ".join(f"{name} {abs(v - ours) / ours:.0e}" for name, v in others)


def from_moments(title: str, a: Moments, b: Moments, scipy: bool = False) -> Benchmark:
    """Distance from given means and covariances; `b` is a reference whose factor is cached."""
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

    implementations: dict[str, Callable[[], Work]] = {
        "ours": lambda: lambda: frechet_distance(fresh(a), b),
        "ours (new reference)": lambda: lambda: frechet_distance(fresh(a), fresh(b)),
        "torch-fidelity": torch_fidelity,
        "torchmetrics": torchmetrics,
        **({"SciPy's sqrtm": sqrtm} if scipy else {}),
    }
    return Benchmark(title, implementations, note=agreement)


def from_features(title: str, a: Tensor, b: Tensor) -> Benchmark:
    """Distance from features, including means and covariances."""

    def torch_fidelity() -> Work:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        def work() -> float:
            both = map(fid_features_to_statistics, (a.double(), b.double()))
            return fid_statistics_to_metric(*both, False)["frechet_inception_distance"]

        return work

    implementations = {
        "ours": lambda: lambda: frechet_distance(moments(a), moments(b)),
        "torch-fidelity": torch_fidelity,
    }
    return Benchmark(title, implementations, note=agreement)


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Few samples and few, few and many, and many and many (covariances of full rank)."""
    few, many, dimensions = (40, 200, 64) if setting.small else (1000, 10_000, 2048)
    a, b = (features(few, dimensions, seed) for seed in (0, 1))
    yield from_features(f"Fréchet distance from {few} and {few} features of {dimensions} dimensions", a, b)
    small, small_reference = moments(a), moments(b)
    given = "Fréchet distance, given the moments of"
    yield from_moments(f"{given} {few} features and of {few}", small, small_reference)
    large, reference = (moments(features(many, dimensions, seed)) for seed in (2, 3))
    yield from_moments(f"{given} {few} features and of {many}", small, reference)
    yield from_moments(f"{given} {many} features and of {many}", large, reference, scipy=True)
