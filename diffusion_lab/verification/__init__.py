"""Verification of parts against exact answers: closed forms, automatic differentiation, and simulation."""

from diffusion_lab.verification.check import Chart, Check
from diffusion_lab.verification.data import check_data
from diffusion_lab.verification.gaussian import Gaussian, GaussianLaw
from diffusion_lab.verification.guidance import check_guidance
from diffusion_lab.verification.loss import check_loss
from diffusion_lab.verification.marginal import denoiser_of
from diffusion_lab.verification.metric import check_distance, check_metric
from diffusion_lab.verification.mixture import Mixture, class_denoiser, exact_classifier, exact_denoiser
from diffusion_lab.verification.network import check_network
from diffusion_lab.verification.process import check_process
from diffusion_lab.verification.sampler import check_sampler
from diffusion_lab.verification.schedule import check_schedule

__all__ = [
    "Chart",
    "Check",
    "Gaussian",
    "GaussianLaw",
    "Mixture",
    "check_data",
    "check_distance",
    "check_guidance",
    "check_loss",
    "check_metric",
    "check_network",
    "check_process",
    "check_sampler",
    "check_schedule",
    "class_denoiser",
    "denoiser_of",
    "exact_classifier",
    "exact_denoiser",
]
