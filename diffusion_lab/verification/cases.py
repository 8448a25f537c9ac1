"""The data and processes on which parts are verified."""

from __future__ import annotations

import torch

from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, NoiseProcess, ProbabilityPath, Rectified
from diffusion_lab.verification.gaussian import Gaussian


def data_of(size: int) -> Gaussian:
    """Return Gaussian data with coordinates of different means and variances."""
    mean = 0.3 * torch.cos(torch.arange(size, dtype=torch.float64))
    return Gaussian(mean, torch.linspace(0.05, 0.5, size, dtype=torch.float64))


DATA, WIDE = data_of(8), data_of(128)
"""Data of few coordinates; and of many, for samplers with norms, whose ratios concentrate in high dimensions."""


def processes() -> dict[str, NoiseProcess]:
    """Return one process of each type."""
    continuous = {"VP": VP(Linear()), "VE": VE(Geometric(0.01, 20.0)), "flow": ProbabilityPath(Rectified())}
    return {**continuous, "DDPM": DiscreteProcess(Linear())}
