"""Models: one LightningModule per method, each only wiring."""

from diffusion_lab.model.base import Model
from diffusion_lab.model.ddpm import DDPM

__all__ = ["DDPM", "Model"]
