"""Likelihoods: exact by the probability flow, the variational bound of discrete models, bits per dimension."""

from diffusion_lab.likelihood.bits import bits_per_dim
from diffusion_lab.likelihood.bound import Bound, VariationalBound
from diffusion_lab.likelihood.flow import Flow, FlowLikelihood, dequantize
from diffusion_lab.likelihood.terms import decoder_nll, log_mass_of_level, step_kl

__all__ = [
    "Bound",
    "Flow",
    "FlowLikelihood",
    "VariationalBound",
    "bits_per_dim",
    "dequantize",
    "decoder_nll",
    "log_mass_of_level",
    "step_kl",
]
