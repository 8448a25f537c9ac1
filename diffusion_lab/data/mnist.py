"""MNIST and Fashion-MNIST, the official files."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory
from diffusion_lab.data.official import fetch, missing_error, refuse_damaged
from diffusion_lab.ranges import Count, Levels

CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
NATIVE = 28


@dataclass(kw_only=True, eq=False)
class MNIST(DataModule):
    """60,000 train and 10,000 held-out (test) images (1, 28, 28); LeCun et al. 1998, Xiao et al. 2017.

    `shape` (1, 32, 32) adds a black border of two pixels, so that networks can downsample by powers of two. Reads
    <data_dir>/{MNIST,FashionMNIST}/raw: the published .gz, checked against its md5, or else the unpacked file, checked
    against its header. Raises FileNotFoundError for a missing file, ValueError for a damaged one; both name the file.
    """

    variant: Literal["mnist", "fashion_mnist"] = "mnist"
    data_dir: str
    download: bool = False
    shape: tuple[Count, ...] = (1, 32, 32)
    grey_levels: Levels | None = 256
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_names = CLOTHES if self.variant == "fashion_mnist" else None
        if self.shape not in ((1, 28, 28), (1, 32, 32)):
            raise ValueError(f"data.shape={list(self.shape)} must be [1,28,28], or [1,32,32] with a border")

    @property
    def folder(self) -> Path:
        return Path(self.data_dir).expanduser() / CLASSES[self.variant] / "raw"

    def prepare_data(self) -> None:
        """Download missing files if `download` is true."""
        if not self.download:
            return
        for name, md5 in self._official().resources:
            packed = self.folder / name
            if not packed.exists() and not packed.with_suffix("").exists():
                fetch(packed, md5, self._official().mirrors)

    def load(self) -> Splits:
        return Splits(self._part("train"), self._part("t10k"), "official train and test split")

    def _part(self, name: str) -> InMemory:
        border = (self.shape[-1] - NATIVE) // 2
        x = torch.nn.functional.pad(self._read(f"{name}-images-idx3-ubyte")[:, None], [border] * 4)
        return InMemory(x, self._read(f"{name}-labels-idx1-ubyte"))

    def _read(self, name: str) -> Tensor:
        packed, plain = self.folder / f"{name}.gz", self.folder / name
        md5 = dict(self._official().resources)[packed.name]
        refuse_damaged(packed, md5)
        if packed.exists():
            return read_idx(packed, gzip.decompress(packed.read_bytes()))
        if plain.exists():
            return read_idx(plain, plain.read_bytes())
        raise missing_error(plain, packed, md5)

    def _official(self) -> type:
        import torchvision

        return getattr(torchvision.datasets, CLASSES[self.variant])


def read_idx(path: Path, content: bytes) -> Tensor:
    """Return the uint8 array of an IDX file: bytes 0, 0, 8, rank, then `rank` big-endian int32 sizes, then values.

    Raises ValueError naming `path` if the content has another format or length.
    """
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    header = 4 + 4 * rank
    shape = np.frombuffer(content[4:header], ">i4").tolist() if len(content) >= header else []
    if not shape or len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} is damaged ({len(content)} bytes do not fit its header): remove it and download it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
