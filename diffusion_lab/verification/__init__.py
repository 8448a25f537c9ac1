"""Verification of samplers against exact distributions, for Gaussian data with a closed-form denoiser."""

from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw
from diffusion_lab.verification.marginal import denoiser_of
from diffusion_lab.verification.sampler import Check, check_sampler

__all__ = ["Check", "Gaussian", "GaussianLaw", "check_sampler", "denoiser_of"]
