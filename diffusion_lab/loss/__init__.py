"""Training losses: denoising, implicit and sliced score matching."""

from diffusion_lab.loss.denoising import WEIGHTS, DenoisingLoss, Reduction, Weighting
from diffusion_lab.loss.score_matching import ImplicitScoreMatching, Probe, SlicedScoreMatching

__all__ = [
    "WEIGHTS",
    "DenoisingLoss",
    "ImplicitScoreMatching",
    "Probe",
    "Reduction",
    "SlicedScoreMatching",
    "Weighting",
]
