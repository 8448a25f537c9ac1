"""A guided density is not the likelihood of the model."""

from __future__ import annotations

from diffusion_lab.denoiser import Denoiser


def check_guidance(denoiser: Denoiser, guided_field: bool, name: str) -> None:
    """Raise ValueError for a guided denoiser, unless `guided_field` of the likelihood `name` requests its density."""
    if denoiser.guided and not guided_field:
        raise ValueError(
            "the density of a guided field is not the likelihood of the model: leave out guidance, or set "
            f"likelihood.{name}.guided_field=true"
        )
