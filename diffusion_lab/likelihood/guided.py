"""Refusing to call the density of a guided field a likelihood of the model."""

from __future__ import annotations

from diffusion_lab.denoiser import Denoiser


def check_guidance(denoiser: Denoiser, guided_field: bool) -> None:
    """Raise ValueError for a guided denoiser, unless the density of the guided field is what is asked for."""
    if denoiser.guided and not guided_field:
        raise ValueError(
            "the density of a guided field is not the likelihood of the model: leave out guidance, or ask for it by "
            "guided_field=true of the likelihood"
        )
