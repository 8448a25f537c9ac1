"""Write the guides of the pictures in guide/sampling.md: python docs/control_guides.py FOLDER"""

import sys
from pathlib import Path

import torch
from PIL import Image

from diffusion_lab.data import Digits, Patches

STROKES = {
    "0": "..xxxx.. .xx..xx. .xx..xx. .xx..xx. .xx..xx. .xx..xx. .xx..xx. ..xxxx..",
    "1": "...xx... ..xxx... ...xx... ...xx... ...xx... ...xx... ...xx... ..xxxx..",
    "3": ".xxxxx.. .....xx. ....xx.. ..xxxx.. ....xxx. .....xx. .....xx. .xxxxx..",
    "7": ".xxxxxx. .....xx. ....xx.. ....xx.. ..xxxxx. ...xx... ..xx.... ..xx....",
}
PATCHES = (2, 44, 61, 12)
"""Held-out patches with some structure; many show sky or a plain background."""


def write(pixels: torch.Tensor, path: Path) -> None:
    """Write bytes (C, H, W) as an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.to(torch.uint8).movedim(0, -1).squeeze(-1).numpy()).save(path)


def main(folder: Path) -> None:
    digits, patches = Digits().load().held_out, Patches(held_out_size=64).load().held_out
    for index in range(4):
        write(digits[index][0] / 16 * 255, folder / "digits" / f"{index}.png")
    for index in PATCHES:
        write(patches[index][0], folder / "patches" / f"{index:02d}.png")
    for name, rows in STROKES.items():
        drawn = torch.tensor([[200 * (cell == "x") for cell in row] for row in rows.split()])
        write(drawn[None], folder / "strokes" / f"{name}.png")
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 255
    write(mask, folder / "right.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
