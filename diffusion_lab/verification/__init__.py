"""Exact laws that samplers are held against, on data whose best denoiser is known in closed form."""

from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw
from diffusion_lab.verification.sampler import Check, check_sampler

__all__ = ["Check", "Gaussian", "GaussianLaw", "check_sampler"]
