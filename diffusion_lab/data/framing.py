"""From an encoded image to the pixels that are trained on."""

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
"""What a user should know of images, by trait."""


@dataclass(frozen=True)
class Framing:
    """From an encoded image to uint8 (C, H, W): upright, opaque, cropped to the centre in whole pixels, then resized.

    shape: (C, H, W), C = 1 (grey) or 3.  crop: side of the square that is cut out; None cuts out the largest rectangle
    of the aspect H : W.  resampling: PIL's filter of that name; all are antialiased, and none acts on equal sizes.
    background: red, green and blue, 0..255, that transparent pixels are composited over.  max_pixels: most pixels of a
    file that is read.
    """

    shape: tuple[int, ...]
    crop: int | None = None
    resampling: Resampling = "bicubic"
    background: tuple[int, ...] = field(default=(255, 255, 255), repr=False)
    max_pixels: int = field(default=MAX_PIXELS, repr=False)

    def __call__(self, file: BinaryIO) -> tuple[Tensor, set[str]]:
        """The pixels, and which of REMARKS apply to them."""
        from PIL import Image

        channels, height, width = self.shape
        image, traits = read_image(file, channels, self.background, self.max_pixels)
        box = self.box(*image.size)
        across, down = box[2] - box[0], box[3] - box[1]
        if across < width or down < height:
            traits.add("enlarged")
        if self.crop is None and (across, down) != image.size:
            traits.add("cropped")
        framed = Image.fromarray(np.asarray(image)[box[1] : box[3], box[0] : box[2]])  # PIL's crop has a limit of size
        pixels = np.array(framed.resize((width, height), Image.Resampling[self.resampling.upper()]))
        return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1), traits

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge of what is cut out of an image of that size."""
        aspect = self.shape[2] / self.shape[1]
        across = self.crop or max(1, min(width, round(height * aspect)))
        down = self.crop or max(1, min(height, round(width / aspect)))
        if across > width or down > height:
            raise ValueError(f"{width}x{height} pixels, smaller than data.crop={self.crop}")
        left, upper = (width - across) // 2, (height - down) // 2
        return left, upper, left + across, upper + down

    def content(self, traits: Counter[str]) -> str:
        """What decides the pixels of images with these traits."""
        return f"{self} {self.background if traits['transparent'] else ''}"

    def remarks(self, traits: Counter[str], count: int) -> list[str]:
        """A line on each trait of `count` images."""
        words = {"size": f"{self.shape[2]}x{self.shape[1]}", "background": ",".join(map(str, self.background))}
        return [f"{traits[name]} of {count} images {text.format(**words)}" for name, text in REMARKS.items()
                if traits[name]]  # fmt: skip
