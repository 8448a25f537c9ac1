"""Control: samples that agree with a guide or a measurement, from any denoiser and with any sampler."""

from diffusion_lab.control.base import Control
from diffusion_lab.control.deep_inverse import DeepInverse
from diffusion_lab.control.measurement import Measured
from diffusion_lab.control.operator import BlockAverage, Blur, GaussianBlur, Grey, LinearOperator, Mask
from diffusion_lab.control.posterior import DPS, PiGDM
from diffusion_lab.control.replacement import RePaint, Replacement
from diffusion_lab.control.sdedit import SDEdit

__all__ = [
    "DPS",
    "BlockAverage",
    "Blur",
    "Control",
    "DeepInverse",
    "GaussianBlur",
    "Grey",
    "LinearOperator",
    "Mask",
    "Measured",
    "PiGDM",
    "RePaint",
    "Replacement",
    "SDEdit",
]
