"""Training losses: denoising, implicit and sliced score matching, maximum likelihood of an energy, cross entropy."""

from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.contrastive import ContrastiveLoss, energy
from diffusion_lab.loss.cross_entropy import CrossEntropy
from diffusion_lab.loss.denoising import WEIGHTS, DenoisingLoss, Reduction, Weighting
from diffusion_lab.loss.hybrid import HybridLoss
from diffusion_lab.loss.progressive import ProgressiveLoss
from diffusion_lab.loss.score_matching import ImplicitScoreMatching, Probe, SlicedScoreMatching
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.loss.time_law import Importance, LogitNormal, LogNormal, LossSecondMoment, TimeLaw, Uniform

__all__ = [
    "WEIGHTS",
    "ContrastiveLoss",
    "CrossEntropy",
    "DenoisingLoss",
    "FrozenDenoiser",
    "HybridLoss",
    "Importance",
    "ImplicitScoreMatching",
    "LogNormal",
    "LogitNormal",
    "LossSecondMoment",
    "OneTimeLoss",
    "Probe",
    "ProgressiveLoss",
    "Reduction",
    "SlicedScoreMatching",
    "TimeLaw",
    "Uniform",
    "Weighting",
    "energy",
]
