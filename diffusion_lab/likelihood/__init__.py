"""Likelihoods: exact by the probability flow, the variational bound of discrete models, bits per dimension."""

from diffusion_lab.likelihood.bits import bits_per_dim
from diffusion_lab.likelihood.bound import Bound, VariationalBound, log_mass_of_level
from diffusion_lab.likelihood.flow import Flow, FlowLikelihood, dequantize

__all__ = [
    "Bound",
    "Flow",
    "FlowLikelihood",
    "VariationalBound",
    "bits_per_dim",
    "dequantize",
    "log_mass_of_level",
]
