"""Likelihoods: the variational bound of discrete models, and bits per dimension."""

from diffusion_lab.likelihood.bits import bits_per_dim
from diffusion_lab.likelihood.bound import Bound, VariationalBound, log_mass_of_level

__all__ = ["Bound", "VariationalBound", "bits_per_dim", "log_mass_of_level"]
