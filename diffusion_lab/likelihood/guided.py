"""A guided density is not the likelihood of the model."""

from __future__ import annotations

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.gradient import ShiftedScore


def check_guidance(denoiser: Denoiser, guided_field: bool, name: str) -> None:
    """Raise ValueError for a guided denoiser, unless `guided_field` of the likelihood `name` requests its density.

    Autograd does not see a gradient that guides, so a denoiser with one has no density here.
    """
    if isinstance(denoiser, ShiftedScore) or denoiser.mean_gradient is not None:
        raise ValueError(
            "a denoiser that is guided by a gradient has no likelihood: leave out guidance, or set likelihood=none"
        )
    if denoiser.guided and not guided_field:
        raise ValueError(
            "the density of a guided field is not the likelihood of the model: leave out guidance, or set "
            f"likelihood.{name}.guided_field=true"
        )
