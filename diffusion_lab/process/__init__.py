"""Noise processes: schedules, the continuous SDEs, discrete noise levels and a single noise level."""

from diffusion_lab.process.base import NoiseProcess, Spacing, Variance, broadcast, learned
from diffusion_lab.process.discrete import DiscreteProcess
from diffusion_lab.process.schedule import BetaSchedule, Cosine, Geometric, Linear, Rectified, Schedule, Sigmoid
from diffusion_lab.process.sde import SDE, VE, VP, ProbabilityPath, SubVP
from diffusion_lab.process.single import SingleLevel

__all__ = [
    "BetaSchedule",
    "SDE",
    "VE",
    "VP",
    "Cosine",
    "Geometric",
    "DiscreteProcess",
    "Linear",
    "NoiseProcess",
    "ProbabilityPath",
    "Rectified",
    "Schedule",
    "Sigmoid",
    "SingleLevel",
    "Spacing",
    "SubVP",
    "Variance",
    "broadcast",
    "learned",
]
