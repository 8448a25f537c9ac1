"""Autoguidance: Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself (arXiv:2406.02507)."""

from __future__ import annotations

from collections.abc import Callable

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.guided import Guidance, Guided, NoiseInterval, same_noise
from diffusion_lab.ranges import NonNegative


class Autoguidance(Guidance):
    """D_weak(x) + scale (D(x) - D_weak(x)), with a smaller or less trained denoiser D_weak of the same data (Eq. 3).

    Both are conditioned on the same label, if they are class-conditional.  At scale 1 guidance is off; otherwise each
    step evaluates both networks.

    Args:
        weak: the weaker denoiser, its model, or a function that loads it on first use.
        scale: guidance scale, >= 0.
        interval: (low, high) of sigma / alpha = exp(-log-SNR / 2) in which guidance is on; None: everywhere.

    Raises:
        ValueError: for a number out of range; on a call, for incompatible denoisers.
    """

    name = "autoguidance"

    def __init__(
        self,
        weak: Denoiser | Callable[[], Denoiser],
        scale: NonNegative = 1.5,
        interval: NoiseInterval | None = None,
    ) -> None:
        super().__init__(scale, interval)
        if not isinstance(weak, Denoiser):
            weak = getattr(weak, "denoiser", weak)  # of a model
        if not isinstance(weak, Denoiser) and not callable(weak):
            raise ValueError(f"weak={weak!r} must be a denoiser or a model, such as diffusion_lab.load(...) returns")
        self.weak = weak

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """Return the guided denoiser."""
        if not isinstance(self.weak, Denoiser):
            self.weak = self.weak()
        check_pair(denoiser, self.weak)
        weak = self.weak if self.weak.classes is None else self.weak.given(**denoiser.condition)
        first = next(denoiser.parameters(), None)
        return Guided(denoiser, weak if first is None else weak.to(first.device), self.scale, self.interval)


def check_pair(strong: Denoiser, weak: Denoiser) -> None:
    """Raise ValueError unless both denoisers have the same noise process, parameterization and classes."""
    for what, same in (
        ("noise process", same_noise(strong, weak)),
        ("parameterization", strong.parameterization == weak.parameterization),
        ("classes", weak.classes in (None, strong.classes)),
    ):
        if not same:
            raise ValueError(
                f"autoguidance needs two models of the same data and noise, but the weaker one differs in its {what}: "
                "choose another guidance.ckpt_path"
            )
