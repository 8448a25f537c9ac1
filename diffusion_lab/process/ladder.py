"""N discrete noise levels on the common clock: DDPM's betas, NCSN's sigmas."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.process.base import NoiseProcess, Spacing, Variance
from diffusion_lab.process.schedule import Schedule


class Ladder(NoiseProcess):
    """Levels 1..N at t = i/N; level 0 is clean data (alpha = 1, sigma = 0).

    On a beta schedule these are the N steps of Ho et al. 2020 (their zero-based index is i - 1); on a sigma schedule
    the N noise levels of Song & Ermon 2019 (their index counts from the largest sigma).  Computed in float64.
    """

    def __init__(self, schedule: Schedule, levels: int = 1000) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        alpha, sigma = schedule.ladder(levels)
        if not ((sigma[1:] > sigma[:-1]).all() and sigma[0] > 0 and alpha[-1] > 0):
            raise ValueError(
                f"the schedule does not give {levels} increasing noise levels: use another number of levels"
            )
        self.schedule, self.levels, self.prior_std = schedule, levels, schedule.prior_std
        clean = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self._table = torch.stack([torch.cat([clean[0], alpha]), torch.cat([clean[1], sigma])])
        # One float64 copy per device, and no buffer: .half() or bf16-true must not round a schedule,
        # and samplers ask with scalars on the CPU while training asks with batches on the device.
        self._tables = {self._table.device: self._table}

    def level(self, t: Tensor) -> Tensor:
        """Index 0..N of the level at t, int64."""
        return (t * self.levels).round().long()

    def _look_up(self, row: int, t: Tensor) -> Tensor:
        if t.device not in self._tables:
            wide = torch.float32 if t.device.type == "mps" else torch.float64
            self._tables[t.device] = self._table.to(t.device, wide)
        return self._tables[t.device][row][self.level(t)].to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return self._look_up(0, t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._look_up(1, t)

    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Uniform over the levels 1..N."""
        level = torch.randint(1, self.levels + 1, (batch,), device=device, generator=generator)
        return level / self.levels

    def grid(self, steps: int | None, spacing: Spacing = "uniform") -> Tensor:
        """Times of S of the N levels (all of them if steps is None), then the clean level 0.

        The sequences of Song, Meng & Ermon 2021 (DDIM), Appendix D.2, in zero-based indices: uniform = floor(i N /
        S), quadratic = floor(0.8 N (i / (S - 1))^2), which repeats some of the lowest levels when S is large.
        """
        steps = self.levels if steps is None else steps
        if not 1 <= steps <= self.levels:
            raise ValueError(f"sampler steps must be between 1 and the model's {self.levels} levels, got {steps}")
        indices = {
            "uniform": torch.arange(steps) * self.levels // steps,
            "quadratic": (torch.linspace(0, (0.8 * self.levels) ** 0.5, steps, dtype=torch.float64) ** 2).long(),
        }[spacing]
        levels = torch.cat([torch.zeros(1, dtype=torch.int64), indices + 1]).flip(0)
        return levels.to(torch.float64) / self.levels

    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        """N b^2 sigma_t^2 / (2 alpha_t^2 var): Ho et al. 2020, Eq. 12, times the N terms that a uniform t stands for.

        b multiplies x_0 in the posterior mean, var is the variance of the reverse step; at the first level, where the
        posterior variance vanishes, var is that of the second (Ho et al.'s code).
        """
        t = t.double()
        s = t - 1 / self.levels
        b, var = self.posterior(s, t)[1], self.reverse_variance(s, t, variance)
        var = torch.where(self.level(t) == 1, self.decoder_variance.to(t.device), var)
        return self.levels * (b * self.sigma(t) / self.alpha(t)) ** 2 / (2 * var)

    @property
    def decoder_variance(self) -> Tensor:
        """Variance of the last reverse step: the second level's posterior variance (Ho et al.'s code)."""
        return self.posterior(*torch.tensor([1.0, 2.0], dtype=torch.float64).div(self.levels))[2]
