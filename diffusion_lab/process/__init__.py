"""Noise processes: schedules, the continuous SDEs and the discrete ladder."""

from diffusion_lab.process.base import NoiseProcess, Spacing, Variance
from diffusion_lab.process.ladder import Ladder
from diffusion_lab.process.schedule import Cosine, Geometric, Linear, Schedule, Sigmoid
from diffusion_lab.process.sde import SDE, VE, VP, SubVP

__all__ = [
    "SDE",
    "VE",
    "VP",
    "Cosine",
    "Geometric",
    "Ladder",
    "Linear",
    "NoiseProcess",
    "Schedule",
    "Sigmoid",
    "Spacing",
    "SubVP",
    "Variance",
]
