"""What each loss is minimised by, on Gaussian data and mixtures in the plane."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import (
    ConsistencyLoss,
    ContinuousConsistencyLoss,
    ContrastiveLoss,
    CrossEntropy,
    FlashLoss,
    FrozenDenoiser,
    HybridLoss,
    NoisePairs,
    ProgressiveLoss,
)
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess
from diffusion_lab.sampler import DDIM
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.verification.check import seeded
from diffusion_lab.verification.gaussian import Gaussian
from diffusion_lab.verification.mixture import (
    ExactNetwork,
    Mixture,
    exact_classifier,
    exact_denoiser,
    gmm2d,
    noise_conditioning,
)

PLANE = Mixture(gmm2d().w, gmm2d().m, gmm2d().c, (2,))
"""Three modes in the plane, points (B, 2)."""

CORRELATED = Mixture([1.0], [[0.3, -0.2]], [[[0.3, 0.1], [0.1, 0.15]]], (2,))
"""A Gaussian in the plane with correlated coordinates."""

ONE = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.3, 0.1], dtype=torch.float64))
"""A Gaussian with independent coordinates, of which maps of the probability flow are known too."""


@dataclass(frozen=True)
class Problem:
    """A loss, the denoiser that minimises it, and data (x_0, labels); `worse` is a denoiser whose loss is larger.

    `zero` says that the loss of the optimum is 0, as of a student that has learned all that its teacher knows.
    """

    loss: Callable[..., Tensor]
    optimum: Denoiser
    data: tuple[Tensor, Tensor]
    worse: Denoiser | None = None
    zero: bool = False


COUNT = 4096
"""Number of data points."""


def one_data() -> tuple[Tensor, Tensor]:
    """Points of `ONE` (COUNT, 2), and labels 0."""
    z = torch.randn(COUNT, 2, dtype=torch.float64, generator=seeded())
    return ONE.mean + ONE.variance.sqrt() * z, torch.zeros(COUNT, dtype=torch.int64)


def denoising(loss: Any, process: NoiseProcess) -> Problem:
    """Any other loss: its optimum is the exact estimate E[eps | x_t]; of Gaussians this is the median too."""
    return Problem(loss, exact_denoiser(CORRELATED, process), CORRELATED.sample(COUNT, 0))


def classification(loss: Any, process: NoiseProcess) -> Problem:
    """Cross entropy: p(label | x_t)."""
    return Problem(loss, exact_classifier(PLANE, process), PLANE.sample(COUNT, 0))


class Energy(ExactNetwork):
    """The score of a mixture, and its energy -log p."""

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.target.score(x, *self.scales(c_noise))

    def energy(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """-log p_t(x), (B,)."""
        return -self.target.log_density(x, *self.scales(c_noise)).to(x)


def contrast(loss: Any, process: NoiseProcess) -> Problem:
    """Contrastive losses: the energy -log p, with Langevin steps that are short and many, and without l2."""
    std = process.sigma(torch.ones((), dtype=torch.float64)).item()
    target = Mixture([1.0], [[0.0, 0.0]], [[[0.1, 0.0], [0.0, 0.1]]], (2,))
    loss = copy.copy(loss)
    loss.steps, loss.step_size, loss.noise, loss.clip, loss.l2 = 200, 0.03 * (0.1 + std**2), None, None, 0.0
    row = Parameterization("score", noise_conditioning(process))
    return Problem(loss, Denoiser(Energy(target, process), process, row), target.sample(COUNT, 0))


@dataclass(frozen=True)
class Closer(NoisePairs):
    """The pairs of another law with r moved close to t, where the biases of target and of the teacher's step vanish."""

    pairs: NoisePairs

    def sample(self, k: int, top: float, count: int, generator: Any) -> tuple[Tensor, Tensor]:
        t, r = self.pairs.sample(k, top, count, generator)
        return t, t - (t - r).clamp(max=0.02 * t) / 2

    def refinement(self, k: int) -> float:
        return self.pairs.refinement(k)


def consistency(loss: Any, process: NoiseProcess) -> Problem:
    """Consistency losses: the end of the probability flow; distilled, it has the loss 0."""
    optimum, teacher = (ONE.denoiser(process, consistency=kind) for kind in (True, False))
    loss = copy.copy(loss)
    distilled = loss.teacher is not None
    loss.teacher = FrozenDenoiser(teacher) if distilled else None
    loss.pairs, loss.target_decay = Closer(loss.pairs), 0.0
    return Problem(loss, optimum, one_data(), teacher if distilled else None, zero=distilled)


def continuous(loss: Any, process: NoiseProcess) -> Problem:
    """Consistency in continuous time, after the warm-up: the same optimum; distilled, it has the held-out loss 0."""
    optimum, teacher = (ONE.denoiser(process, consistency=kind) for kind in (True, False))
    loss = copy.deepcopy(loss)
    loss.updates, distilled = loss.warmup, loss.teacher is not None
    loss.teacher = FrozenDenoiser(teacher) if distilled else None
    return Problem(loss.train(not distilled), optimum, one_data(), teacher if distilled else None, zero=distilled)


def flash(loss: Any, process: NoiseProcess) -> Problem:
    """FlashDiffusion's held-out loss: the end of the probability flow, up to the error of the teacher's steps."""
    optimum, teacher = (ONE.denoiser(process, consistency=kind) for kind in (True, False))
    loss = copy.copy(loss)
    loss.teacher, loss.solver, loss.guidance = FrozenDenoiser(teacher), copy.copy(loss.solver), None
    loss.solver.dtype = torch.float64
    return Problem(loss, optimum, one_data(), teacher, zero=True)


class TwoSteps(ExactNetwork):
    """The network whose DDIM step arrives where two DDIM steps of the exact network arrive."""

    def __init__(self, exact: Denoiser, times: Tensor) -> None:
        self.exact, self.process, self.times = exact, exact.process, times

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        t = (c_noise.double() + 1) / self.process.levels if self.process.levels else c_noise.double() / 999
        nearest = (self.times[:, 0] - t[:, None]).abs().argmin(1)
        eps = torch.empty_like(x)
        for k in nearest.unique().tolist():
            eps[nearest == k] = self.at(x[nearest == k], self.times[k])
        return eps

    def at(self, x: Tensor, times: Tensor) -> Tensor:
        """eps at x (B, 2), from t by t' to t''; as z'' is a_x x + a_eps eps for one step."""
        p, step = ScalarProcess(self.process, times[times > 0], True), DDIM()
        t, middle, end = times.tolist()

        def denoise(x: Tensor, t: float) -> Any:
            return self.exact(x, torch.tensor(t, dtype=torch.float64))

        first = step(p, x, t, middle, denoise, lambda std=1.0: 0.0, [])
        alpha, sigma = self.process.alpha_sigma(torch.tensor([t, end], dtype=torch.float64))
        if end == 0:
            x0 = denoise(first, middle).x0
            return (x - alpha[0] * x0) / sigma[0]
        last = step(p, first, middle, end, denoise, lambda std=1.0: 0.0, [])
        ratio = alpha[1] / alpha[0]
        return (last - ratio * x) / (sigma[1] - ratio * sigma[0])


def progressive(loss: Any, process: NoiseProcess) -> Problem:
    """Progressive distillation: one DDIM step for two, with the loss 0."""
    teacher, loss = ONE.denoiser(process), copy.copy(loss)
    loss.teacher = FrozenDenoiser(teacher)
    optimum = teacher.with_network(TwoSteps(teacher, loss.times(process)))
    return Problem(loss, optimum, one_data(), teacher.with_network(lambda x, c: 0 * x), zero=True)


class LearnedVariance(ExactNetwork):
    """eps of `ONE`, and the variance of a reverse step between its two fixed choices: that of q(x_s | x_t)."""

    def __init__(self, process: NoiseProcess) -> None:
        self.process = process

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = c_noise.double() + 1
        t = (level / self.process.levels)[:, None]
        alpha, sigma = self.process.alpha_sigma(t)
        inner = ONE.variance * sigma**2 / (alpha**2 * ONE.variance + sigma**2)  # of x_0 given x_t
        later = t.clamp(min=2 / self.process.levels)
        s = later - 1 / self.process.levels
        _, b, small = self.process.posterior(s, later)
        first = (level == 1)[:, None]
        large = self.process.transition(torch.where(first, 0.0, s), torch.where(first, t, later))[1]
        want = torch.where(first, inner, small + b**2 * inner)
        fraction = (want / small).log() / (large / small).log()
        eps = (x - alpha * ONE.mean) * ONE.eps_factor(alpha, sigma)
        return torch.cat([eps, 2 * fraction - 1], 1).to(x)


def hybrid(loss: Any, process: NoiseProcess) -> Problem:
    """L_hybrid and L_vlb of points: with a learned range of variances, their optimum too."""
    loss = copy.copy(loss)
    loss.grey_levels = None
    if loss.variance != "learned_range":
        return denoising(loss, process)
    row = Parameterization("eps", "level", learned_range=True)
    return Problem(loss, Denoiser(LearnedVariance(process), process, row), one_data())


PROBLEMS: dict[type, Callable[[Any, NoiseProcess], Problem]] = {
    CrossEntropy: classification,
    ContrastiveLoss: contrast,
    ConsistencyLoss: consistency,
    ContinuousConsistencyLoss: continuous,
    FlashLoss: flash,
    ProgressiveLoss: progressive,
    HybridLoss: hybrid,
}
"""Losses -> their problems; `denoising` for any other."""


def problem_of(loss: Any, process: NoiseProcess) -> Problem:
    """The problem on which a loss is verified."""
    make = next((make for cls, make in PROBLEMS.items() if isinstance(loss, cls)), denoising)
    return make(loss, process)


def with_network(denoiser: Denoiser, network: Callable[..., Tensor]) -> Denoiser:
    """The denoiser, or classifier, with another network."""
    if isinstance(denoiser, ClassPosterior):
        return ClassPosterior(network, denoiser.process, denoiser.parameterization, denoiser.classes, denoiser.shape)
    return denoiser.with_network(network)
