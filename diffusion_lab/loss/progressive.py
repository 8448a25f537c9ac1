"""Progressive distillation: one step of a student for two steps of its teacher; Salimans & Ho 2022."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.noise import Generators, draw, draw_each
from diffusion_lab.process import NoiseProcess, Spacing
from diffusion_lab.process.base import broadcast
from diffusion_lab.ranges import Count, checked

ErrorWeighting = Literal["truncated_snr", "snr_plus_one", "snr", "x0"]

WEIGHTS = {
    "truncated_snr": lambda snr: snr.clamp(min=1),
    "snr_plus_one": lambda snr: snr + 1,
    "snr": lambda snr: snr,
    "x0": torch.ones_like,
}
"""SNR -> w for each weighting of |x_hat - x_target|^2."""


class ProgressiveLoss:
    """w(SNR) |x_hat - x_target|^2 per image, with one of the student's `steps` times t, and eps ~ N(0, I).

    x_target is the x_0 from which a DDIM step of the student, t -> t'', arrives where two DDIM steps of the teacher,
    t -> t' -> t'', arrive (Salimans & Ho 2022, Algorithm 2).  With k = alpha / sigma, which is infinite at t'' = 0,

        x_target = x_2 + (x_1 - x_2) (k' - k) / (k'' - k)

    where x_1 and x_2 are the teacher's estimates of x_0 at t and t'.  A student of N steps samples with DDIM in N steps
    of the same spacing, and is then the teacher of a student of N / 2 steps.

    Args:
        teacher: its two steps are taught.
        steps: the student's sampling steps N; the teacher has 2 N.
        weighting: of the error of x_0: "truncated_snr" = max(SNR, 1), "snr_plus_one" = SNR + 1 (the error of v; both of
            the paper, Section 4), "snr" (that of eps), or "x0" = 1.
        spacing: of the sampler's timesteps; every other time of 2 N steps must be one of N steps, as with "trailing".
    """

    REFUSES: ClassVar = {
        "model._target_=diffusion_lab.model.Classifier": "distils models that can be sampled from, not model=classifier"
    }

    @checked
    def __init__(
        self,
        teacher: FrozenDenoiser,
        steps: Count = 4,
        weighting: ErrorWeighting = "truncated_snr",
        spacing: Spacing = "trailing",
    ) -> None:
        self.teacher, self.steps, self.weight, self.spacing = teacher, steps, WEIGHTS[weighting], spacing

    def check(self, student: Denoiser, shape: tuple[int, ...] | None = None) -> None:
        """Raise ValueError if the teacher is of other data or noise, or the process has no such steps."""
        self.teacher.check(student, shape)
        self.times(student.process)

    def times(self, process: NoiseProcess) -> Tensor:
        """(t, t', t'') of each of the student's steps, (N, 3), float64; the last t'' is 0, data.

        Raises:
            ValueError: if there are not so many, or the student's times are not among those of the teacher.
        """
        both = process.timesteps(2 * self.steps, self.spacing)
        if not torch.equal(both[::2], process.timesteps(self.steps, self.spacing)):
            raise ValueError(
                f"loss.spacing={self.spacing}: the times of {self.steps} steps are not every other one of those of "
                f"{2 * self.steps} steps; use loss.spacing=trailing"
            )
        return torch.cat([both, both.new_zeros(1)]).unfold(0, 3, 2)

    def __call__(self, denoiser: Denoiser, x0: Tensor, generator: Generators = None) -> Tensor:
        """Loss of each image, shape (B,), for x0 of shape (B, ...) and one generator, or one per image."""

        def steps(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
            return torch.randint(self.steps, (count,), device=device, generator=generator)

        step = draw_each(steps, len(x0), x0.device, generator)
        return self.at(denoiser, x0, step, draw(x0.shape, generator, x0.dtype, x0.device))

    def at(self, denoiser: Denoiser, x0: Tensor, step: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given steps 0 .. N - 1 (B,), the noisiest first, and noise (B, ...)."""
        times = self.times(denoiser.process)[step.cpu()]
        k = signal_to_noise(denoiser.process, times).to(x0.device)
        x = denoiser.process.perturb(x0, times[:, 0].to(x0), eps)
        with torch.no_grad():
            target = teach(self.teacher(denoiser), x, times, broadcast(share_of_first(k), x))
        squared = (denoised(denoiser, x, times[:, 0]) - target).square().flatten(1).mean(1)
        return self.weight(k[:, 0] ** 2).to(squared) * squared

    def training_state(self) -> dict[str, str]:
        """The digest of the teacher, for a checkpoint."""
        return {"teacher": self.teacher.digest}

    def load_training_state(self, state: dict[str, str]) -> None:
        """Continue from a checkpoint; raises ValueError if the teacher has other weights than there."""
        self.teacher.check_digest(state.get("teacher"))


def signal_to_noise(process: NoiseProcess, times: Tensor) -> Tensor:
    """alpha / sigma at times, float64; infinite at t = 0, which stands for data."""
    alpha, sigma = process.alpha_sigma(times.double().clamp(min=process.t_train_min))
    return torch.where(times == 0, torch.inf, alpha / sigma)


def share_of_first(k: Tensor) -> Tensor:
    """(k' - k) / (k'' - k) for k = alpha / sigma at the three times (B, 3): the share of x_1 in the target."""
    return (k[:, 1] - k[:, 0]) / (k[:, 2] - k[:, 0])


def teach(teacher: Denoiser, x: Tensor, times: Tensor, share: Tensor) -> Tensor:
    """The target at x (B, ...) of the teacher's DDIM steps between the first and last of three times (B, 3)."""
    first = denoised(teacher, x, times[:, 0])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (teacher.process.marginal(t, x) for t in times[:, :2].unbind(1))
    second = denoised(teacher, alpha_s * first + sigma_s / sigma_t * (x - alpha_t * first), times[:, 1])
    return torch.lerp(second, first, share)


def denoised(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x] at x (B, ...) and times t (B,), without the rounding errors of eps / alpha where alpha is near 0."""
    output, *_ = denoiser.network_at(x, t.to(x), **denoiser.condition_of(x))
    c_skip, c_out = (broadcast(c, x) for c in denoiser.skip_and_out(t))
    return c_skip * x + c_out * denoiser.parameterization.split(output)[0]
