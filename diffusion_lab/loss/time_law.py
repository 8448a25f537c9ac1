"""Laws of training times: which t a loss is evaluated at, and the weight that keeps its expectation."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from diffusion_lab.noise import Generators, draw_each
from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import Count, checked


class TimeLaw(nn.Module):
    """Samples training times from the process's own law, uniform in t, with weight 1."""

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """(t, weight), each (count,), float32; the mean of weight * loss is that under uniform times."""
        t = draw_each(process.sample_times, count, device, generator)
        return t, torch.ones_like(t)

    def update(self, process: NoiseProcess, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses (B,) of a training step at times t (B,)."""


class Importance(TimeLaw):
    """Uniform in log-SNR, with importance weights; Song et al. 2021b, Section 4.2."""

    def sample(
        self, process: NoiseProcess, count: int, device: torch.device, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        pairs = draw_each(lambda *of: torch.stack(process.importance_times(*of)), count, device, generator)
        return tuple(pairs)


class LossSecondMoment(TimeLaw):
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
