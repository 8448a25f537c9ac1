"""Any network as a feature extractor: DINOv2, a model of torchvision, or your own."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_lab.metric.features import QUANTISATION, full_precision, to_uint8
from diffusion_lab.metric.resize import resize_bicubic
from diffusion_lab.metric.weights import read_weights
from diffusion_lab.ranges import Count, Finite, Positive, checked

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # differs between processes


class NetworkFeatures:
    """The flattened output of a network for the input (x - mean) / std, where x are the images, quantised, / 255.

    The network is copied and runs in evaluation mode, in float32, without autocast or TF32. The digest is that of its
    parameters, its buffers, its repr (which lists layers and their options) and the settings below.

    Args:
        network: maps images (B, C, size, size) to one tensor (B, ...).
        name: part of the name of the metric, fd_<name>_<samples>.
        weights: a state dict, as a torch file or .safetensors; None keeps the weights of `network`.
        size: images are resized to (size, size), antialiased bicubic; None does not resize them, and `prepare` then
            needs training images to determine the number of features.
        repeat_grey: repeats images of one channel to three.
        mean: of each channel, or one for all; the defaults of mean, std and size are those of ImageNet, for DINOv2 and
            torchvision's models.
        std: like `mean`.
        batch_size: images in the network at once.
    """

    short = "fd"
    learned = False
    classes = 0

    @checked
    def __init__(
        self,
        network: nn.Module,
        name: str,
        weights: str | None = None,
        size: Count | None = 224,
        repeat_grey: bool = True,
        mean: tuple[Finite, ...] = (0.485, 0.456, 0.406),
        std: tuple[Positive, ...] = (0.229, 0.224, 0.225),
        batch_size: Count = 100,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        if not name.isidentifier():
            raise ValueError(f"name is part of a metric name: letters, digits and _ only, got {name!r}")
        if not mean or len(mean) != len(std):
            raise ValueError(f"mean and std need one number per channel, got {mean} and {std}")
        self.name = name
        self.path = None if weights is None else Path(weights).expanduser()
        self.size = size
        self.repeat_grey = repeat_grey
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.batch_size = batch_size
        self.dimensions = 0  # known after the first call
        self.digest = ""
        # A copy, because the caller may train or change the network.
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def prepare(
        self,
        train_images: Tensor | None = None,
        train_labels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read the weights (once), move the network to `device`, and call it on two images.

        Raises:
            FileNotFoundError: if the file of weights is missing.
            ValueError: if the weights are of another network, if the network does not return one vector per image, and
                if neither images nor `size` are given.
        """
        if self.size is None and train_images is None:
            raise ValueError(f"metric features {self.name!r} need size, the side of the network's input in pixels")
        self._device = torch.device(device)
        if not self.digest:
            if self.path is not None:
                self._load(self.path)
            self._network.float()
            self.digest = _digest(self._network, self._settings())
        self._network.to(self._device)
        if train_images is None:
            train_images = torch.zeros(2, 3 if self.repeat_grey else len(self.mean), self.size, self.size)
        self(train_images[:2])

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"the weights of metric features {self.name!r} are missing: {path} does not exist")
        state = read_weights(path.read_bytes(), path)
        try:
            self._network.load_state_dict(state)
        except RuntimeError as error:
            ours = self._network.state_dict()
            differing = sorted(ours.keys() ^ state.keys()) or [k for k in ours if ours[k].shape != state[k].shape]
            raise ValueError(
                f"{path} holds the weights of another network, not of {type(self._network).__name__}: "
                f"{len(differing)} names or shapes differ, the first is {differing[0] if differing else error}"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images.

        Raises:
            ValueError: for another number of channels than `mean`, and if the network does not return (B, dimensions).
        """
        self._ready()
        channels = 3 if self.repeat_grey and images.ndim == 4 and images.shape[1] == 1 else -1
        if images.ndim != 4 or len(self.mean) not in (1, max(channels, images.shape[1])):
            raise ValueError(
                f"metric features {self.name!r} normalise {len(self.mean)} channels, got images {tuple(images.shape)}: "
                "set mean and std to one number per channel"
            )
        pixels = to_uint8(images).to(self._device).expand(-1, channels, -1, -1)
        with full_precision(self._device):
            features = torch.cat([self._features(block) for block in pixels.split(self.batch_size)])
        if self.dimensions not in (0, features.shape[1]):
            raise ValueError(
                f"metric features {self.name!r} have {features.shape[1]} numbers per image, before {self.dimensions}: "
                "use images of one size, or set size"
            )
        self.dimensions = features.shape[1]
        return features.to(images.device)

    def _ready(self) -> None:
        if not self.digest:
            raise RuntimeError(f"metric features {self.name!r} are not loaded yet: call prepare first")

    def _features(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 255
        if self.size is not None:
            x = resize_bicubic(x, self.size)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        output = self._network((x - mean) / std)
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(pixels):
            shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"metric features {self.name!r} need one vector per image, but for {len(pixels)} images "
                f"{type(self._network).__name__} returns {shown}"
            )
        return output.flatten(1).float()

    def logits(self, features: Tensor) -> Tensor:
        """Raise ValueError: there are no logits."""
        raise ValueError(f"metric features {self.name!r} have no logits: an Inception Score needs metric=inception")

    def protocol(self) -> dict[str, str | int]:
        """Return all settings that affect the features."""
        self._ready()
        return {
            "extractor": self.name,
            "digest": self.digest,
            "dimensions": self.dimensions,
            **self._settings(),
        }

    def _settings(self) -> dict[str, str | int]:
        return {
            "quantisation": QUANTISATION,
            "resize": "none" if self.size is None else f"antialiased bicubic to {self.size}",
            "normalisation": f"mean {self.mean}, std {self.std}",
            "grey": "repeated to 3 channels" if self.repeat_grey else "1 channel",
            "precision": "float32",
        }


def _digest(network: nn.Module, settings: dict[str, str | int]) -> str:
    """Return the sha256 of the network's layers, parameters and buffers, and of the settings."""
    name_of_class = f"{type(network).__module__}.{type(network).__qualname__}"
    digest = hashlib.sha256(f"{name_of_class} {_ADDRESS.sub('', repr(network))} {settings}".encode())
    for name, value in sorted([*network.named_parameters(), *network.named_buffers()], key=lambda pair: pair[0]):
        content = value.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)} ".encode())
        digest.update(content.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
