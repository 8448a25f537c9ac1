"""Control: changes the states of a sampler between its steps, for any sampler."""

from diffusion_lab.control.base import Control

__all__ = ["Control"]
