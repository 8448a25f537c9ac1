"""Samplers: one loop, and the predictors and correctors that it follows."""

from diffusion_lab.sampler.base import Sampler, State
from diffusion_lab.sampler.corrector import AnnealedLangevin, Corrector, Langevin
from diffusion_lab.sampler.edm import EDM
from diffusion_lab.sampler.multistep import DPMSolver, UniPC
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.sampler.predictor import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Move,
    OneStep,
    Predictor,
    ReverseDiffusion,
)

__all__ = [
    "DDIM",
    "EDM",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMSolver",
    "EulerMaruyama",
    "Langevin",
    "Move",
    "OneStep",
    "Predictor",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Sampler",
    "State",
    "UniPC",
]
