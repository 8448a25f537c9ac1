"""Distances between the images of a student and those of its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

DistanceName = Literal["l2", "l1", "huber", "lpips"]

DOWNLOAD = "download them once with python -c \"import torchvision; torchvision.models.vgg16(weights='DEFAULT')\""

VGG_SIZE = 224
"""Pixels of the images that VGG-16 was trained on."""


def _huber(difference: Tensor, c: float) -> Tensor:
    offset = c * difference.shape[1] ** 0.5
    tiny = torch.finfo(difference.dtype).tiny  # the root of 0 has no gradient
    return (difference.square().sum(1) + offset**2).clamp(min=tiny).sqrt() - offset


OF_DIFFERENCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda difference, c: difference.square().mean(1),
    "l1": lambda difference, c: difference.abs().mean(1),
    "huber": _huber,
}
"""(difference (B, D), c) -> distance (B,)."""


class Distance:
    """d(a, b) of each image.

    - "l2", "l1": mean of squares, or of absolute values.
    - "huber": sqrt(|a - b|^2 + c^2 D) - c sqrt(D) with D dimensions (Song & Dhariwal 2023, Eq. 9); |a - b| for c = 0.
    - "lpips": of the features of VGG-16 (Zhang et al. 2018), at 224 pixels as in Song et al. 2023's program; grey
      images are seen as coloured ones.  Checkpoints do not contain its network.
    """

    def __init__(self, name: DistanceName, c: float = 0.0) -> None:
        self.name, self.c = name, c
        self._lpips: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Distance:
        return self  # nothing changes it

    def check(self, shape: Sequence[int]) -> None:
        """Raise ValueError if data points of `shape` have no such distance, or VGG-16's weights are missing."""
        if self.name != "lpips":
            return
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError("loss.distance=lpips compares images of 1 or 3 channels: choose l2 or l1")
        path = vgg_weights()
        if not path.is_file():
            raise ValueError(f"loss.distance=lpips needs the weights of VGG-16 (528 MB) in {path}: {DOWNLOAD}")

    def __call__(self, a: Tensor, b: Tensor, limits: tuple[float, float] | None = None) -> Tensor:
        """d(a, b), shape (B,), for a and b (B, ...); `limits` is the range of images, for lpips."""
        if self.name != "lpips":
            return OF_DIFFERENCE[self.name]((a - b).flatten(1), self.c)
        if self._lpips is None:
            self.check(a.shape[1:])
            self._lpips = lpips_network()
        low, high = limits or (-1.0, 1.0)
        images = [self.prepared(2 * (x - low) / (high - low) - 1) for x in (a, b)]
        return self._lpips.to(a)(*images).flatten()

    def prepared(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) as VGG-16 takes them, (B, 3, 224, 224)."""
        x = x.expand(-1, 3, -1, -1)
        return interpolate(x, (VGG_SIZE, VGG_SIZE), mode="bilinear") if x.shape[-2:] != (VGG_SIZE, VGG_SIZE) else x


def vgg_weights() -> Path:
    """The file in which torchvision keeps the weights of VGG-16."""
    from torchvision.models import VGG16_Weights  # only for this distance

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.DEFAULT.url).name


def lpips_network() -> nn.Module:
    """The frozen network (a, b) -> distance (B, 1, 1, 1), for images in [-1, 1].

    Raises:
        ValueError: if the file of VGG-16's weights is damaged.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # only for this distance

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.eval().requires_grad_(False)
    except Exception as error:  # of any class that reading a damaged file raises
        raise ValueError(
            f"{vgg_weights()} is damaged ({type(error).__name__}): remove the weights and {DOWNLOAD}"
        ) from error
