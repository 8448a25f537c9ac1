"""N discrete noise levels: DDPM's betas, NCSN's sigmas."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.process.base import EvenSpacing, NoiseProcess, Variance
from diffusion_lab.process.schedule import Schedule
from diffusion_lab.ranges import Levels, checked


class DiscreteProcess(NoiseProcess):
    """Noise levels 1..N at t = i/N; level 0 is clean data (alpha = 1, sigma = 0).

    On a beta schedule these are the N steps of Ho et al. 2020 (their zero-based index is i - 1), on a sigma schedule
    the N noise levels of Song & Ermon 2019 (their index counts from the largest sigma).  Computed in float64.

    Between the levels log(sigma^2/alpha^2) is interpolated by a monotone cubic in t, and the schedule's family
    determines alpha.  A discrete model can therefore be evaluated in continuous time, with continuous f and g.  Below
    level 1 sigma^2/alpha^2 is a power of t.
    """

    @checked
    def __init__(self, schedule: Schedule, levels: Levels = 1000) -> None:
        super().__init__()
        alpha, sigma = schedule.noise_levels(levels)
        if not ((sigma[1:] > sigma[:-1]).all() and sigma[0] > 0 and alpha[-1] > 0):
            raise ValueError(
                f"the schedule has no {levels} strictly increasing noise levels: use another number of levels"
            )
        self.schedule, self.levels, self.prior_std = schedule, levels, schedule.prior_std
        self.t_min = self.t_train_min = 1 / levels
        self.keeps_signal = bool((alpha == 1).all())
        log_ratio = 2 * (sigma.log() - alpha.log())
        # One float64 copy per device instead of a buffer: .half() or bf16-true must not round the schedule, and
        # samplers evaluate it at scalars on the CPU, training at batches on the device.
        self._tables = {log_ratio.device: cubics(log_ratio, monotone_slopes(log_ratio))}

    def level(self, t: Tensor) -> Tensor:
        """The level at t, a real number in [0, N]; an integer if it differs from one only by rounding errors of t."""
        level = t.double() * self.levels if t.device.type != "mps" else t * self.levels
        integer = level.round()
        return torch.where((level - integer).abs() < 4 * self.levels * torch.finfo(t.dtype).eps, integer, level)

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(level, distance u to the level below, coefficients (4, ...) of log(sigma^2/alpha^2) as a cubic in u)."""
        level = self.level(t)
        if t.device not in self._tables:
            self._tables[t.device] = next(iter(self._tables.values())).to(t.device, level.dtype)
        below = level.floor().clamp(1, self.levels - 1)
        return level, level - below, self._tables[t.device][:, below.long() - 1]

    def _ratio(self, level: Tensor, u: Tensor, cubic: Tensor) -> Tensor:
        """sigma^2/alpha^2 from the result of `_curve`."""
        a, b, c, d = cubic.unbind()
        return torch.where(level < 1, a + b * level.log(), a + u * (b + u * (c + u * d))).exp()

    def _ratio_and_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(sigma^2/alpha^2, its time derivative) at t, float64."""
        level, u, cubic = curve = self._curve(t)
        (_, b, c, d), ratio = cubic.unbind(), self._ratio(*curve)
        return ratio, self.levels * torch.where(level < 1, b / level, b + u * (2 * c + 3 * u * d)) * ratio

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self._ratio(*self._curve(t))
        alpha = self.schedule.alpha_of(ratio)
        return alpha.to(t.dtype), (alpha * ratio.sqrt()).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha_sigma(t)[1]

    def f(self, t: Tensor) -> Tensor:
        ratio, rate = self._ratio_and_rate(t)
        return (self.schedule.rate_of_log_alpha(ratio) * rate).to(t.dtype)

    def g(self, t: Tensor) -> Tensor:
        ratio, rate = self._ratio_and_rate(t)
        return (self.schedule.alpha_of(ratio) * rate.sqrt()).to(t.dtype)

    def sample_times(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Times sampled uniformly from the levels 1..N."""
        level = torch.randint(1, self.levels + 1, (batch,), device=device, generator=generator)
        return level.float() / self.levels

    def importance_times(
        self, batch: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(t, importance weight): levels sampled with probability proportional to g^2 / sigma^2."""
        t = torch.arange(1, self.levels + 1, dtype=torch.float64) / self.levels
        probability = (self.g(t) / self.sigma(t)) ** 2
        probability = (probability / probability.sum()).to(device, torch.float32)
        level = torch.multinomial(probability, batch, replacement=True, generator=generator)
        return (level.float() + 1) / self.levels, 1 / (self.levels * probability[level])

    def even_timesteps(self, steps: int | None, spacing: EvenSpacing, start: float, end: float) -> Tensor:
        """Times of S of the N levels between `end` and `start`; all of them if steps is None.

        With zero-based indices i: "uniform" = floor(i N / S) and "quadratic" = floor(0.8 N (i / (S - 1))^2) are the
        sequences of Song, Meng & Ermon 2021 (DDIM), Appendix D.2; the second repeats some of the lowest levels if S is
        large.  "leading" = i floor(N / S) and "linspace" = round(i (N - 1) / (S - 1)) are named as in diffusers,
        "trailing" = round(N - i N / S) - 1 as in Lin et al. 2023, Table 2.  If alpha = 1, only the largest level has
        the variance of the prior: then "uniform" equals "linspace", "quadratic" ends at the largest level, and
        "leading" is refused.
        """
        low, high = round(self.levels * end), round(self.levels * start)
        count = high - low + 1
        steps = count if steps is None else steps
        if not 1 <= steps <= count:
            limit = f"the model's {count} levels" if count == self.levels else f"the {count} levels of this range of t"
            raise ValueError(f"sampler steps must be between 1 and {limit}, got {steps}")
        if spacing in ("leading", "strided") and self.keeps_signal:
            raise ValueError(f"spacing={spacing} starts below the noise level of the prior: use uniform")
        stride = next((k for k in range(1, count + 1) if -(-count // k) == steps), None)
        if spacing == "strided" and stride is None:
            raise ValueError(f"no integer stride selects {steps} of {count} levels: use sampler.spacing=linspace")
        i, evenly = torch.arange(steps), torch.linspace(0, count - 1, steps, dtype=torch.float64).round()
        top = count - 1 if self.keeps_signal else 0.8 * count
        squares = torch.linspace(0, top**0.5, steps, dtype=torch.float64) ** 2
        indices = {
            "uniform": evenly if self.keeps_signal else i * count // steps,
            "quadratic": squares.round() if self.keeps_signal else squares.floor(),
            "trailing": (count - i.flip(0) * (count / steps)).round() - 1,
            "leading": i * (count // steps),
            "strided": i * (stride or 1),
            "linspace": evenly,
        }[spacing]
        return (low + indices).flip(0).to(torch.float64) / self.levels

    def vlb_weight(self, t: Tensor, variance: Variance) -> Tensor:
        """N b^2 sigma_t^2 / (2 alpha_t^2 var): Ho et al. 2020, Eq. 12, times N, as a uniform t samples one of N terms.

        b is the coefficient of x_0 in the posterior mean, var the variance of the reverse step; at the first level,
        where the posterior variance vanishes, that of the second level is used (Ho et al.'s code).
        """
        level = self.level(t).double().round()
        t, s = level / self.levels, (level - 1) / self.levels
        b, var = self.posterior(s, t)[1], self.reverse_variance(s, t, variance)
        var = torch.where(level == 1, self.decoder_variance.to(t.device), var)
        return self.levels * (b * self.sigma(t) / self.alpha(t)) ** 2 / (2 * var)

    @property
    def decoder_variance(self) -> Tensor:
        """Variance of the last reverse step: the posterior variance at the second level (Ho et al.'s code)."""
        return self.posterior(*torch.tensor([1.0, 2.0], dtype=torch.float64).div(self.levels))[2]


def cubics(values: Tensor, slopes: Tensor) -> Tensor:
    """Coefficients (4, N - 1), lowest power first, of the Hermite cubics through N values with these slopes."""
    y, m, rise, end = values[:-1], slopes[:-1], values.diff(), slopes[1:]
    return torch.stack([y, m, 3 * rise - 2 * m - end, m + end - 2 * rise])


def monotone_slopes(values: Tensor) -> Tensor:
    """Slopes of a monotone cubic interpolant: harmonic means of the differences (Fritsch & Butland 1984)."""
    rise = values.diff()
    inner = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
    return torch.cat([rise[:1], inner, rise[-1:]])
