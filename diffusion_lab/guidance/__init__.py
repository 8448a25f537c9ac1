"""Guidance: what changes a denoiser's estimates while sampling, for every sampler alike."""

from diffusion_lab.guidance.autoguidance import Autoguidance
from diffusion_lab.guidance.classifier_free import ClassifierFree
from diffusion_lab.guidance.guided import Guidance, Guided

__all__ = ["Autoguidance", "ClassifierFree", "Guidance", "Guided"]
