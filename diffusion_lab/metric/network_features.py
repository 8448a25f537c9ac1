"""Any network as a feature extractor: DINOv2, a model of torchvision, one's own."""

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

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # the part of a repr that differs from process to process


class NetworkFeatures:
    """The flattened output of a network on (x - mean) / std, x the images as bytes / 255.

    The network is copied and runs in evaluation mode, in float32, without autocast or TF32. Its digest covers its
    parameters, its buffers, how it prints (which names its layers and their options) and the settings here.

    Args:
        network: maps images (B, C, size, size) to one tensor (B, ...).
        name: stands in the name of the score, fd_<name>_<samples>.
        weights: a file of weights by name, of torch or .safetensors; None keeps those that the network came with.
        size: images are resized to (size, size), antialiased bicubic; None leaves them as they are, and `prepare`
            needs some to learn how many numbers the network gives.
        repeat_grey: repeats images of one channel to three.
        mean: of each channel, or one for all; ImageNet's, as `size`, is what DINOv2 and torchvision's models expect.
        std: likewise.
        batch_size: images in the network at once.
    """

    short = "fd"
    learned = False
    classes = 0

    def __init__(
        self,
        network: nn.Module,
        name: str,
        weights: str | None = None,
        size: int | None = 224,
        repeat_grey: bool = True,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        batch_size: int = 100,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        if not name.isidentifier():
            raise ValueError(f"name becomes part of a metric name: letters, digits, _ only, got {name!r}")
        if batch_size < 1 or (size is not None and size < 1):
            raise ValueError(f"batch_size and size must be at least 1, got {batch_size} and {size}")
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one number per channel, std above 0, got {mean} and {std}")
        self.name = name
        self.path = None if weights is None else Path(weights).expanduser()
        self.size = size
        self.repeat_grey = repeat_grey
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.batch_size = batch_size
        self.dimensions = 0  # known once the network was tried
        self.digest = ""
        # A copy: the caller may go on training his, and nothing here may change it.
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def prepare(
        self,
        train_images: Tensor | None = None,
        train_labels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read the weights, once, move the network to `device`, and try it on two images.

        Raises:
            FileNotFoundError: if the file of weights is missing.
            ValueError: if it holds other weights, if the network does not give one vector per image, and without both
                images and `size`.
        """
        if self.size is None and train_images is None:
            raise ValueError(f"metric features {self.name!r} need size: the pixels of an image's side in the network")
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
            raise FileNotFoundError(f"the weights of metric features {self.name!r} are missing: there is no {path}")
        state = read_weights(path.read_bytes(), path)
        try:
            self._network.load_state_dict(state)
        except RuntimeError as error:
            own = self._network.state_dict()
            odd = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
            raise ValueError(
                f"{path} holds the weights of another network, not of {type(self._network).__name__}: "
                f"{len(odd)} names or shapes differ, the first is {odd[0] if odd else error}"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images.

        Raises:
            ValueError: for images of other channels than `mean`, and if the network does not give (B, dimensions).
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
                f"metric features {self.name!r} gave {features.shape[1]} numbers per image after {self.dimensions}: "
                "images of one size only, or set size"
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
                f"metric features {self.name!r} need one vector per image: for {len(pixels)} images "
                f"{type(self._network).__name__} gave {shown}"
            )
        return output.flatten(1).float()

    def logits(self, features: Tensor) -> Tensor:
        """There are no class scores: raises ValueError."""
        raise ValueError(f"metric features {self.name!r} score no classes: an Inception Score needs metric=inception")

    def protocol(self) -> dict[str, str | int]:
        """What changes these features."""
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
    """sha256 of the network's layers, parameters and buffers, and of the settings."""
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    digest = hashlib.sha256(f"{kind} {_ADDRESS.sub('', repr(network))} {settings}".encode())
    for name, value in sorted([*network.named_parameters(), *network.named_buffers()], key=lambda pair: pair[0]):
        content = value.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)} ".encode())
        digest.update(content.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
