"""Training losses: denoising, score matching, maximum likelihood of an energy, cross entropy, consistency."""

from diffusion_lab.loss.base import OneTimeLoss
from diffusion_lab.loss.consistency import ConsistencyLoss
from diffusion_lab.loss.continuous_consistency import ContinuousConsistencyLoss
from diffusion_lab.loss.contrastive import ContrastiveLoss, energy
from diffusion_lab.loss.cross_entropy import CrossEntropy
from diffusion_lab.loss.denoising import WEIGHTS, DenoisingLoss, Reduction, Weighting
from diffusion_lab.loss.flash import FlashLoss
from diffusion_lab.loss.hybrid import HybridLoss
from diffusion_lab.loss.noise_pair import KarrasPairs, NoisePairs, TunedPairs
from diffusion_lab.loss.progressive import ProgressiveLoss
from diffusion_lab.loss.score_matching import ImplicitScoreMatching, Probe, SlicedScoreMatching
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.loss.time_law import Constant, Importance, LogitNormal, LogNormal, LossSecondMoment, TimeLaw, Uniform

__all__ = [
    "Constant",
    "WEIGHTS",
    "ConsistencyLoss",
    "ContinuousConsistencyLoss",
    "ContrastiveLoss",
    "CrossEntropy",
    "DenoisingLoss",
    "FlashLoss",
    "FrozenDenoiser",
    "HybridLoss",
    "ImplicitScoreMatching",
    "Importance",
    "KarrasPairs",
    "LogNormal",
    "LogitNormal",
    "LossSecondMoment",
    "NoisePairs",
    "OneTimeLoss",
    "Probe",
    "ProgressiveLoss",
    "Reduction",
    "SlicedScoreMatching",
    "TimeLaw",
    "TunedPairs",
    "Uniform",
    "Weighting",
    "energy",
]
