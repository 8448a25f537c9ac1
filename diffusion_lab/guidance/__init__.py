"""Guidance: wraps a denoiser and changes its estimates, for any sampler."""

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.guidance.autoguidance import Autoguidance
from diffusion_lab.guidance.classifier import ClassifierGuidance
from diffusion_lab.guidance.classifier_free import ClassifierFree
from diffusion_lab.guidance.guided import Guidance, Guided

__all__ = ["Autoguidance", "ClassPosterior", "ClassifierFree", "ClassifierGuidance", "Guidance", "Guided"]
