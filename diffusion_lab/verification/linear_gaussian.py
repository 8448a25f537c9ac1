"""Gaussian images with any covariance, measured linearly: the exact denoiser and the exact posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.control import LinearOperator
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


@dataclass(frozen=True)
class GaussianImages:
    """x_0 ~ N(mean, covariance) for images of `shape` (C, H, W); covariance (D, D), float64."""

    shape: tuple[int, int, int]
    covariance: Tensor
    mean: float = 0.0

    @classmethod
    def smooth(cls, shape: tuple[int, int, int], length: float = 1.5) -> GaussianImages:
        """Unit variance and correlation exp(-r / length) of pixels at distance r; channels correlate by 0.7."""
        c, y, x = (k.flatten().double() for k in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
        distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).sqrt()
        return cls(shape, torch.exp(-distance / length) * torch.where(c[:, None] == c, 1.0, 0.7))

    def denoiser(self, process: NoiseProcess) -> Denoiser:
        """The exact one: eps = sigma (alpha^2 covariance + sigma^2 I)^-1 (x - alpha mean)."""

        def eps(x: Tensor, c_noise: Tensor) -> Tensor:
            t = c_noise.double()[0]
            alpha, sigma = process.alpha_sigma((t + 1) / process.levels if process.levels else t / 999)
            total = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance), dtype=torch.float64)
            inverse = torch.linalg.inv(total) * sigma
            return ((x.flatten(1) - alpha * self.mean) @ inverse.to(x)).reshape(x.shape)

        row = Parameterization("eps", "level" if process.levels else "time_999", bounded=False)
        return Denoiser(eps, process, row)

    def matrix(self, operator: LinearOperator) -> Tensor:
        """A as a matrix (values, D)."""
        basis = torch.eye(math.prod(self.shape), dtype=torch.float64).reshape(-1, *self.shape)
        return operator(basis).flatten(1).T

    def posterior(self, operator: LinearOperator, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of x_0 given y = A x_0 + N(0, noise^2 I), for data of mean 0."""
        a, y = self.matrix(operator), y.flatten()
        known = a.abs().sum(1) > 0  # a mask measures nothing elsewhere
        a, y = a[known], y[known]
        total = a @ self.covariance @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64)
        gain = self.covariance @ a.T @ torch.linalg.inv(total)
        return gain @ y, self.covariance - gain @ a @ self.covariance


def errors(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """Relative errors of the mean and the covariance of samples x (N, ...), in the Euclidean norm."""
    x = x.flatten(1).double()
    return (
        ((x.mean(0) - mean).norm() / mean.norm()).item(),
        ((torch.cov(x.T) - covariance).norm() / covariance.norm()).item(),
    )


def draw(mean: Tensor, covariance: Tensor, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Samples of N(mean, covariance), (count, *shape)."""
    values, vectors = torch.linalg.eigh(covariance)
    z = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    return (mean + z * values.clamp(min=0).sqrt() @ vectors.T).reshape(count, *shape)
