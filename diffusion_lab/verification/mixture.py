"""Gaussian mixtures, whose noised density, score, denoiser and class posterior are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


class Mixture:
    """sum_k w_k N(m_k, C_k) of data points of `shape`, in float64; also of x_t = alpha x_0 + sigma eps.

    `alpha` and `sigma` are numbers, or one for each point, (B,).  Results have the dtype of x.

    Args:
        weights: w (K,).
        means: m (K, D).
        covs: C (K, D, D).
        shape: of a data point, with D entries.
    """

    def __init__(self, weights: Any, means: Any, covs: Any, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.w = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
        self.m = torch.as_tensor(np.asarray(means), dtype=torch.float64)
        self.c = torch.as_tensor(np.asarray(covs), dtype=torch.float64)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self.c)  # (K, D), (K, D, D)

    @property
    def dim(self) -> int:
        """D."""
        return self.m.shape[1]

    def component(self, k: int) -> Mixture:
        """Component k alone."""
        return Mixture([1.0], self.m[k : k + 1], self.c[k : k + 1], self.shape)

    def components(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """log w_k p(x_t | component k), (B, K), and its gradient in x, (B, K, D)."""
        batch = x.shape[0]
        v = x.reshape(batch, -1).to(torch.float64)
        alpha, sigma = (
            torch.as_tensor(one, dtype=torch.float64).reshape(-1, 1, 1).expand(batch, 1, 1) for one in (alpha, sigma)
        )
        variance = alpha**2 * self.eigenvalues[None] + sigma**2  # (B, K, D)
        p = torch.einsum("bkd,kde->bke", v[:, None, :] - alpha * self.m[None], self.eigenvectors)
        log_densities = -0.5 * (p**2 / variance + torch.log(2 * np.pi * variance)).sum(-1)
        gradient = -torch.einsum("bke,kde->bkd", p / variance, self.eigenvectors)
        return torch.log(self.w)[None] + log_densities, gradient

    def log_density(self, x: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
        """log p(x_t), (B,), float64."""
        return torch.logsumexp(self.components(x, alpha, sigma)[0], dim=1)

    def score(self, x: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
        """grad log p(x_t), of the shape of x."""
        logs, gradients = self.components(x, alpha, sigma)
        return (torch.softmax(logs, dim=1)[..., None] * gradients).sum(1).reshape(x.shape).to(x.dtype)

    def posterior(self, x: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
        """p(component | x_t), the exact classifier of noised data, (B, K), float64."""
        return torch.softmax(self.components(x, alpha, sigma)[0], dim=1)

    def class_gradient(self, x: Tensor, y: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
        """grad log p(component = y | x_t), of the shape of x: the score of the component minus that of all."""
        logs, gradients = self.components(x, alpha, sigma)
        own = gradients[torch.arange(x.shape[0]), y]
        marginal = (torch.softmax(logs, dim=1)[..., None] * gradients).sum(1)
        return (own - marginal).reshape(x.shape).to(x.dtype)

    def eps(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """E[eps | x_t], of the shape of x."""
        score = self.score(x.to(torch.float64), alpha, sigma)
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, *([1] * (x.dim() - 1)))
        return (-sigma * score).to(x.dtype)

    def denoise(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """E[x_0 | x_t], of the shape of x."""
        v, shape = x.to(torch.float64), (-1, *([1] * (x.dim() - 1)))
        alpha, sigma = (torch.as_tensor(one, dtype=torch.float64).reshape(shape) for one in (alpha, sigma))
        return ((v + sigma**2 * self.score(v, alpha, sigma)) / alpha).to(x.dtype)

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """(n points, their components), of one seed."""
        source = np.random.RandomState(seed)
        k = source.choice(len(self.w), size=n, p=self.w.numpy())
        z = torch.as_tensor(source.randn(n, self.dim))
        root = self.eigenvectors * self.eigenvalues.clamp(min=0).sqrt()[:, None, :]
        v = self.m[k] + torch.einsum("bd,bed->be", z, root[k])
        return v.reshape(n, *self.shape), torch.as_tensor(k)


def gmm2d() -> Mixture:
    """Three unequal, partly overlapping modes in the plane, shape (2, 1, 1)."""
    th = 0.6
    r = np.array([[np.cos(th), -np.sin(th)], [np.sin(th), np.cos(th)]])
    covs = [np.diag([0.04, 0.04]), r @ np.diag([0.16, 0.01]) @ r.T, np.diag([0.0225, 0.09])]
    return Mixture([0.3, 0.5, 0.2], [[-1.0, -0.6], [0.9, 0.4], [0.1, 1.1]], covs, (2, 1, 1))


def gauss64() -> Mixture:
    """Correlated Gaussian images of 8x8: a squared-exponential kernel and a nugget."""
    i = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    d2 = ((i[:, None] - i[None]) ** 2).sum(-1)
    cov = 0.2 * np.exp(-0.5 * d2 / 2.0**2) + 0.01 * np.eye(64)
    mean = 0.3 * np.sin(i[:, 0] * 0.7) * np.cos(i[:, 1] * 0.5)
    return Mixture([1.0], mean[None], cov[None], (1, 8, 8))


def diag64() -> Mixture:
    """Gaussian images of 8x8 with independent pixels, for which a Rademacher estimate of a trace is exact."""
    i = np.arange(64)
    return Mixture([1.0], (0.2 * np.cos(0.3 * i))[None], np.diag(0.02 + 0.3 * ((i * 37) % 64) / 64.0)[None], (1, 8, 8))


TARGETS = {"gmm2d": gmm2d, "gauss64": gauss64, "diag64": diag64}
"""Name -> mixture."""


def noise_conditioning(process: NoiseProcess) -> str:
    """The c_noise of exact networks: the level of a process that has several, else 999 t."""
    return "level" if (process.levels or 1) > 1 else "time_999"


class ExactNetwork:
    """The optimal eps of a mixture in float64, given the level of a discrete process or 999 t of a continuous one."""

    def __init__(self, target: Mixture, process: NoiseProcess) -> None:
        self.target, self.process = target, process

    def scales(self, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at c_noise, each (B,), float64."""
        of_level, c = noise_conditioning(self.process) == "level", c_noise.double()
        return self.process.alpha_sigma((c + 1) / self.process.levels if of_level else c / 999)

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.target.eps(x, *self.scales(c_noise))


def exact_denoiser(target: Mixture, process: NoiseProcess) -> Denoiser:
    """The denoiser with the optimal estimate of a mixture."""
    return Denoiser(ExactNetwork(target, process), process, Parameterization("eps", noise_conditioning(process)))


class ClassScores(ExactNetwork):
    """The exact network of a mixture with labels: of the component of the label, or of all for the null label, K.

    Its output has the meaning that the parameterization `row` says.
    """

    def __init__(self, target: Mixture, process: NoiseProcess, row: Parameterization) -> None:
        super().__init__(target, process)
        self.row, self.labels = row, []

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        classes = len(self.target.w)
        shape = (-1, *(1,) * (x.dim() - 1))
        alpha, sigma = (k.reshape(shape) for k in self.scales(c_noise))
        score = self.target.score(x, alpha, sigma)
        own = score + self.target.class_gradient(x, label.clamp(max=classes - 1), alpha, sigma)
        eps = -sigma * torch.where((label < classes).reshape(shape), own, score)
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        return (eps - self.row.eps(zeros, x, alpha, sigma)) / self.row.eps(ones, zeros, alpha, sigma)


def class_denoiser(target: Mixture, process: NoiseProcess, output: str = "eps") -> Denoiser:
    """The exact denoiser of a mixture whose components are classes, with a null label."""
    row = Parameterization(output, noise_conditioning(process))
    denoiser = Denoiser(ClassScores(target, process, row), process, row)
    denoiser.classes = denoiser.null = len(target.w)
    return denoiser


class ClassLogits(ExactNetwork):
    """log p(component | x_t) of a mixture, as logits; the input may have been scaled to unit variance."""

    def __init__(self, target: Mixture, process: NoiseProcess, unit_input: bool = False) -> None:
        super().__init__(target, process)
        self.unit_input = unit_input

    def __call__(self, seen: Tensor, c_noise: Tensor) -> Tensor:
        alpha, sigma = self.scales(c_noise)
        unit = (alpha**2 + sigma**2).sqrt().reshape(-1, *(1,) * (seen.dim() - 1))
        return self.target.components(seen * unit if self.unit_input else seen, alpha, sigma)[0]  # not normalised


def exact_classifier(
    target: Mixture, process: NoiseProcess, unit_input: bool = False, classes: int | None = None, shape: Any = None
) -> ClassPosterior:
    """The exact p(component | x_t) of a mixture."""
    row = Parameterization(c_noise=noise_conditioning(process), unit_input=unit_input)
    network = ClassLogits(target, process, unit_input)
    return ClassPosterior(network, process, row, classes or len(target.w), shape or target.shape)
