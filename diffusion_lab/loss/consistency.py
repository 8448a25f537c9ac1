"""Consistency losses: distillation, training, improved training and easy tuning as settings of one class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffusion_lab import noise
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.distance import Distance, DistanceName
from diffusion_lab.loss.noise_pair import NoisePairs
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import NoiseProcess, broadcast
from diffusion_lab.ranges import NonNegative, Probability, checked

IntervalWeight = Literal["uniform", "snr", "snr_plus_one", "karras", "truncated_snr", "interval"]
Solver = Literal["heun", "euler"]

WEIGHTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "uniform": lambda t, r, sigma_data: torch.ones_like(t),
    "snr": lambda t, r, sigma_data: t**-2,
    "snr_plus_one": lambda t, r, sigma_data: t**-2 + 1,
    "karras": lambda t, r, sigma_data: t**-2 + sigma_data**-2,
    "truncated_snr": lambda t, r, sigma_data: (t**-2).clamp(min=1),
    "interval": lambda t, r, sigma_data: 1 / (t - r),
}
"""(t, r, sigma_data) -> weight of noise levels r < t: those of Song et al. 2023's program, and 1 / (t - r)."""


class ConsistencyLoss:
    """w(t, r) d(f(x_t), f_target(x_r)) per image, where f, the estimate of x_0, must be equal along a trajectory.

    Noise levels r < t are in units of n = sigma / alpha, and x_r is on the trajectory through x_t, with y = x / alpha:

        y_r = y_t + (r - t) eps_hat     (Euler; Heun's method takes the mean of both ends)

    With a teacher, eps_hat is its estimate (consistency distillation; Song et al. 2023, Algorithm 2); else it is the
    noise of x_t (consistency training, Algorithm 3).  f_target has the weights of f without gradient, or their average
    with decay mu(k) = target_decay^(1 / refinement(k)), and the dropout masks of f.  At the lowest noise of the process
    and below, also at r = 0, f is the identity and the target is y_r.

    Args:
        pairs: law of t and r (`noise_pair`).
        teacher: `FrozenDenoiser`, or a denoiser or model; None: consistency training.
        solver: the step of the teacher's probability flow.
        distance: d, the name of a `distance.Distance`.
        c: of "huber".
        weighting: w, a key of `WEIGHTS`.
        target_decay: mu at the start; 0: no average.

    Raises:
        ValueError: for numbers out of range; on a call, for a process of discrete levels or an unsuitable teacher.
    """

    REFUSES: ClassVar = {
        "model.levels": "needs a process with continuous times: use model=consistency, or model=score_sde with sde=vp",
        "model.process.levels": "needs a process with continuous times: use model=consistency, or sde=ve, vp or subvp",
        "model.SINGLE_LEVEL": "compares two noise levels, and this model has only one: use model=consistency",
        "model.PREDICTS_LABELS": "trains a denoiser, not a classifier: use model=consistency",
        "trainer.strategy.SHARDED": "evaluates a second network, which trainer=fsdp cannot: use trainer=default",
    }

    @checked
    def __init__(
        self,
        pairs: NoisePairs,
        teacher: Any = None,
        solver: Solver = "heun",
        distance: DistanceName = "l2",
        c: NonNegative = 0.00054,
        weighting: IntervalWeight = "uniform",
        target_decay: Probability = 0.0,
    ) -> None:
        self.pairs, self.solver, self.distance = pairs, solver, Distance(distance, c)
        self.teacher = None if teacher is None else FrozenDenoiser.of(teacher)
        self.weighting, self.target_decay = weighting, target_decay
        self.updates = 0
        self.target: nn.Module | None = None
        self._saved: dict[str, Any] = {}

    def check(self, denoiser: Denoiser, shape: Any = None) -> None:
        """Raise ValueError for a process of discrete levels, or a teacher of other data."""
        if denoiser.process.levels is not None:
            raise ValueError(f"{type(self).__name__} {self.REFUSES['model.levels']}")
        if shape is not None:
            self.distance.check(shape)
        if self.teacher is not None:
            self.teacher.check(denoiser, shape)

    def __call__(self, denoiser: Denoiser, x0: Tensor, generator: Generators = None) -> Tensor:
        """Loss of each image, shape (B,), for x0 of shape (B, ...) and one generator, or one per image."""
        if denoiser.process.levels is not None:
            self.check(denoiser)
        t, r = self.pairs.sample(self.updates, noise_level(denoiser.process, 1.0), len(x0), generator)
        return self.at(denoiser, x0, t, r, draw(x0.shape, generator, x0.dtype, x0.device))

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, r: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for noise levels r < t (B,), float64 on the CPU, and noise eps (B, ...)."""
        process = denoiser.process
        times = [process.time(-2 * n.log()) for n in (t, r)]
        before = noise.states(x0.device)
        x = process.perturb(x0, times[0], eps)
        online = denoiser(x, times[0]).x0
        with torch.no_grad():
            y = self.step(denoiser, x, times, r - t, eps)
            noise.restore(before, x0.device)
            target = self.target_of(denoiser)(process.marginal(times[1], x)[0] * y, times[1]).x0
            at_data = r <= noise_level(process, 0.0) * (1 + 1e-9)
            target = torch.where(at_data.to(x0.device).reshape(-1, *(1,) * (x0.dim() - 1)), y, target)
        weight = WEIGHTS[self.weighting](t, r, denoiser.parameterization.sigma_data or 1.0)
        distance = self.distance(online, target, denoiser.parameterization.range_of(x0.shape))
        return weight.to(distance) * distance

    def step(self, denoiser: Denoiser, x: Tensor, times: list[Tensor], h: Tensor, eps: Tensor) -> Tensor:
        """y_r (B, ...), from x_t along the teacher's probability flow, or along the straight line to x_0."""
        process, h = denoiser.process, broadcast(h, x)
        y = x / process.marginal(times[0], x)[0]
        if self.teacher is None:
            return y + h * eps
        teacher = self.teacher(denoiser)
        d = teacher(x, times[0]).eps
        if self.solver == "heun":
            d = (d + teacher(process.marginal(times[1], x)[0] * (y + h * d), times[1]).eps) / 2
        return y + h * d

    def target_of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser of the target, in the mode of the network."""
        if not self.target_decay:
            return denoiser
        if self.target is None:
            with torch.inference_mode(False):  # it is updated in training, also if a validation comes first
                self.target = copy.deepcopy(denoiser.network).requires_grad_(False)
                self.target.load_state_dict(self._saved.pop("target", denoiser.network.state_dict()))
            if getattr(denoiser.network, "_compiled_call_impl", None) is not None:
                self.target.compile()  # which draws other dropout masks than the network as written
        return denoiser.with_network(self.target.train(denoiser.network.training))

    def decay(self, k: int) -> float:
        """mu after k updates."""
        return self.target_decay ** (1 / self.pairs.refinement(k)) if self.target_decay else 0.0

    @torch.no_grad()
    def after_update(self, network: nn.Module) -> None:
        """Count an update of the weights, and average them."""
        if self.target is not None:
            averages, weights = list(self.target.parameters()), list(network.parameters())
            torch._foreach_lerp_(averages, weights, 1 - self.decay(self.updates))
        self.updates += 1

    def training_state(self) -> dict[str, Any]:
        """Updates so far, the weights of the target, and the digest of the teacher, for a checkpoint."""
        state: dict[str, Any] = {"updates": self.updates}
        if self.target is not None:
            state["target"] = self.target.state_dict()
        if self.teacher is not None:
            state["teacher"] = self.teacher.digest
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: if the teacher has other weights than there.
        """
        if self.teacher is not None:
            self.teacher.check_digest(state.get("teacher"))
        self.updates, self._saved, self.target = state.get("updates", 0), dict(state), None


def noise_level(process: NoiseProcess, t: float) -> float:
    """n = sigma / alpha at t."""
    alpha, sigma = process.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return (sigma / alpha).item()
