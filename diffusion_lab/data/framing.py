"""Decode, crop and resize an image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.image_file import MAX_PIXELS, read_image

Resampling = Literal["box", "bilinear", "bicubic", "lanczos"]

REMARKS = {
    "enlarged": "are smaller than {size}: enlarged",
    "cropped": "have another aspect: cropped to the centre",
    "transparent": "are transparent: composited over background {background}",
    "frames": "have several frames: the first is taken",
}
"""Trait of an image -> note for the user."""


@dataclass(frozen=True)
class Framing:
    """Decode an image to uint8 (C, H, W): upright, opaque, centre-cropped, then resized.

    Args:
        shape: (C, H, W), C = 1 (grey) or 3.
        crop: side of the square crop in pixels; None crops to the largest rectangle of aspect H : W.
        resampling: PIL's filter of that name, antialiased; an image that has the size already is not resampled.
        background: red, green and blue, 0..255, under transparent pixels.
        max_pixels: largest number of pixels of an image file.
    """

    shape: tuple[int, ...]
    crop: int | None = None
    resampling: Resampling = "bicubic"
    background: tuple[int, ...] = field(default=(255, 255, 255), repr=False)
    max_pixels: int = field(default=MAX_PIXELS, repr=False)

    def __call__(self, file: BinaryIO) -> tuple[Tensor, set[str]]:
        """Return the pixels, and the traits (keys of REMARKS) of the image."""
        from PIL import Image

        channels, height, width = self.shape
        image, traits = read_image(file, channels, self.background, self.max_pixels)
        box = self.box(*image.size)
        across, down = box[2] - box[0], box[3] - box[1]
        if across < width or down < height:
            traits.add("enlarged")
        if self.crop is None and (across, down) != image.size:
            traits.add("cropped")
        cropped = Image.fromarray(np.asarray(image)[box[1] : box[3], box[0] : box[2]])  # PIL's crop limits the size
        pixels = np.array(cropped.resize((width, height), Image.Resampling[self.resampling.upper()]))
        return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1), traits

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, upper, right and lower edge of the crop of an image of this size."""
        aspect = self.shape[2] / self.shape[1]
        across = self.crop or max(1, min(width, round(height * aspect)))
        down = self.crop or max(1, min(height, round(width / aspect)))
        if across > width or down > height:
            raise ValueError(f"{width}x{height} pixels, smaller than data.crop={self.crop}")
        left, upper = (width - across) // 2, (height - down) // 2
        return left, upper, left + across, upper + down

    def content(self, traits: Counter[str]) -> str:
        """Return the settings that affect images with these traits, as a string for a hash."""
        return f"{self} {self.background if traits['transparent'] else ''}"

    def remarks(self, traits: Counter[str], count: int) -> list[str]:
        """Return a note for each trait that some of `count` images have."""
        values = {"size": f"{self.shape[2]}x{self.shape[1]}", "background": ",".join(map(str, self.background))}
        return [f"{traits[name]} of {count} images {text.format(**values)}" for name, text in REMARKS.items()
                if traits[name]]  # fmt: skip
