"""Data modules: datasets that emit float images in [0, 1], or points in the plane, in a seekable order."""

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory, TrainBatches
from diffusion_lab.data.celeba import CelebA
from diffusion_lab.data.cifar10 import CIFAR10
from diffusion_lab.data.digits import Digits
from diffusion_lab.data.huggingface import HuggingFace
from diffusion_lab.data.image_folder import ImageFolder
from diffusion_lab.data.lsun import LSUN
from diffusion_lab.data.mnist import MNIST
from diffusion_lab.data.patches import Patches
from diffusion_lab.data.toy2d import Toy2D

__all__ = [
    "CIFAR10",
    "LSUN",
    "MNIST",
    "CelebA",
    "DataModule",
    "Digits",
    "HuggingFace",
    "ImageFolder",
    "InMemory",
    "Patches",
    "Splits",
    "Toy2D",
    "TrainBatches",
]
