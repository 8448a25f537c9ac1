"""Samplers: one loop, and the predictors that it follows."""

from diffusion_lab.sampler.base import Sampler, State
from diffusion_lab.sampler.predictor import DDIM, Ancestral, Predictor

__all__ = ["DDIM", "Ancestral", "Predictor", "Sampler", "State"]
