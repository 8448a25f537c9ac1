"""Networks: functions of x and c_noise, independent of data range and noise process."""

from diffusion_lab.network.adm import ADMUNet, NoisyClassifier
from diffusion_lab.network.discriminator import Discriminator
from diffusion_lab.network.energy import Energy
from diffusion_lab.network.mlp import MLP
from diffusion_lab.network.ncsnpp import NCSNpp
from diffusion_lab.network.refinenet import RefineNet
from diffusion_lab.network.unet import UNet

__all__ = ["MLP", "ADMUNet", "Discriminator", "Energy", "NCSNpp", "NoisyClassifier", "RefineNet", "UNet"]
