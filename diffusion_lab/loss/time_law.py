"""Laws of training times: which t a loss is evaluated at, and the weight of the loss there.

`Importance` and `LossSecondMoment` change the variance of the gradient and keep its expectation, that under uniform
times.  `LogNormal` and `LogitNormal` are part of the objective: their weight is 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from diffusion_lab.noise import Generators, draw_each
from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import Count, Finite, Positive, Time, checked


class TimeLaw(nn.Module, ABC):
    """The law of training times."""

    @abstractmethod
    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """(t, weight), each (count,), float32: the times, and the factors of the losses there."""

    def update(self, process: NoiseProcess, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses (B,) of a training step at times t (B,)."""


class Uniform(TimeLaw):
    """Uniform in t, or over the levels of a discrete process, as the process samples them; weight 1."""

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        t = draw_each(process.sample_times, count, device, generator)
        return t, torch.ones_like(t)


class Constant(TimeLaw):
    """One time for all, with weight 1; t = 1 distils the map from noise to data into one step of a rectified flow.

    Liu et al. 2023 (arXiv:2209.03003), Section 2.
    """

    @checked
    def __init__(self, t: Time = 1.0) -> None:
        super().__init__()
        self.t = t

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        t = torch.full((count,), self.t, device=device)
        return t, torch.ones_like(t)


class TransformedNormal(TimeLaw):
    """Times as a function of z ~ N(mean, std^2), with weight 1."""

    @checked
    def __init__(self, mean: Finite, std: Positive) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    @abstractmethod
    def time(self, process: NoiseProcess, z: Tensor) -> Tensor:
        """The time of each z (B,), float64."""

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        z = draw_each(_normal, count, device, generator)
        t = self.time(process, self.mean + self.std * (z if device.type == "mps" else z.double()))
        if process.levels is not None:
            t = (t * process.levels).round() / process.levels
        t = t.clamp(process.t_train_min, 1.0).float()
        return t, torch.ones_like(t)


class LogNormal(TransformedNormal):
    """log(sigma / alpha) ~ N(mean, std^2); Karras et al. 2022, Table 1, with the mean -1.2 and std 1.2.

    Times outside of [t_train_min, 1] are moved to its ends; those of a discrete process are rounded to levels.
    """

    def __init__(self, mean: Finite = -1.2, std: Positive = 1.2) -> None:
        super().__init__(mean, std)

    def time(self, process: NoiseProcess, z: Tensor) -> Tensor:
        return process.time(-2 * z)


class LogitNormal(TransformedNormal):
    """log(t / (1 - t)) ~ N(mean, std^2); Esser et al. 2024 (arXiv:2403.03206), Section 3.1.

    For x = (1 - t) x_0 + t eps this is the log-normal law of sigma / alpha.
    """

    def __init__(self, mean: Finite = 0.0, std: Positive = 1.0) -> None:
        super().__init__(mean, std)

    def time(self, process: NoiseProcess, z: Tensor) -> Tensor:
        return z.sigmoid()


def _normal(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randn(count, device=device, dtype=torch.float32, generator=generator)


class Importance(TimeLaw):
    """Uniform in log-SNR, with importance weights; Song et al. 2021b, Section 4.2."""

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        pairs = draw_each(lambda *of: torch.stack(process.importance_times(*of)), count, device, generator)
        return tuple(pairs)


class LossSecondMoment(Uniform):
    """Levels in proportion to the root mean square of their last losses; Nichol & Dhariwal 2021, Section 3.3.

        p(t) = (1 - uniform) sqrt(E[L_t^2]) / sum + uniform / T,   weight = 1 / (T p(t))

    It begins when every level has `history` losses, and is uniform before.  All ranks learn from all losses; the
    history is a buffer, which checkpoints keep.  Held-out losses are those of uniform times.

    Args:
        levels: T of the discrete process.
        history: losses that are kept of each level; 10 in the paper.
        uniform: share of the uniform law; 0.001 in the authors' program.
    """

    @checked
    def __init__(self, levels: Count, history: Count = 10, uniform: Annotated[float, Gt(0), Le(1)] = 0.001) -> None:
        super().__init__()
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(levels, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(levels, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p of each level, (T,), float64."""
        levels, history = self.losses.shape
        even = torch.full_like(self.losses[:, 0], 1 / levels)
        if (self.counts < history).any():
            return even
        root = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform) * root / root.sum() + self.uniform * even

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        if process.levels != len(self.losses):
            raise ValueError(
                f"the history of losses is of {len(self.losses)} levels, and the process has {process.levels or 'none'}"
            )
        if generator is not None:  # validation
            return super().sample(process, count, device, generator)
        p = self.probabilities()
        level = torch.multinomial(p, count, replacement=True)
        return (level.float() + 1).to(device) / len(p), (1 / (len(p) * p[level])).float().to(device)

    @torch.no_grad()
    def update(self, process: NoiseProcess, t: Tensor, losses: Tensor) -> None:
        pairs = torch.stack([t.double(), losses.double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [torch.empty_like(pairs) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(ranks, pairs)
            pairs = torch.cat(ranks, 1)
        levels, history = self.losses.shape
        for level, loss in zip((pairs[0] * levels).round().long().tolist(), pairs[1].tolist(), strict=True):
            self.losses[level - 1] = self.losses[level - 1].roll(-1)
            self.losses[level - 1, -1] = loss
            self.counts[level - 1] = min(int(self.counts[level - 1]) + 1, history)
