"""Opening an image file without losing what it holds: bit depth, transparency, orientation and frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 178_956_970  # beyond this Pillow takes a file for an attack
NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF")  # known to Pillow, which cannot decode them
HEAD = 65_536  # bytes in which every header of interest lies


@cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow can decode here."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions()
    return frozenset(s for s, name in known.items() if name in Image.OPEN and name not in NO_PIXELS)


def read_image(
    file: BinaryIO, channels: int, background: Sequence[int] = (255, 255, 255), max_pixels: int = MAX_PIXELS
) -> tuple[Image, set[str]]:
    """The first frame, upright, as 8-bit grey (1 channel) or RGB (3), transparent pixels over `background`.

    Beside it stands what a user should know of it: "transparent" (a pixel at least is), "frames" (more follow).

    Raises ValueError for more than 8 bits a channel, which Pillow would cut or clip without a word, and for more than
    `max_pixels` pixels; and whatever Pillow raises for a damaged file.
    """
    from PIL import Image

    head = file.read(HEAD)
    file.seek(0)
    try:
        return _read(file, head, channels, background, max_pixels)
    except Image.DecompressionBombError:
        file.seek(0)
        with any_size():
            return _read(file, head, channels, background, max_pixels)


def _read(
    file: BinaryIO, head: bytes, channels: int, background: Sequence[int], max_pixels: int
) -> tuple[Image, set[str]]:
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{width}x{height} pixels, more than data.max_pixels={max_pixels}: "
                f"data.max_pixels={width * height} reads it"
            )
        refuse_deep(image, head)
        traits = {"frames"} if getattr(image, "n_frames", 1) > 1 else set()
        upright = ImageOps.exif_transpose(image)  # loads the pixels
        if upright.has_transparency_data:
            _spread_transparency(upright, head)
            clear = upright.convert("RGBA")
            if clear.getchannel("A").getextrema()[0] < 255:
                traits.add("transparent")
                upright = Image.alpha_composite(Image.new("RGBA", clear.size, (*background, 255)), clear)
        # An alpha channel without effect is dropped; a tRNS chunk left in `info` would be converted along.
        upright.info.pop("transparency", None)
        return upright.convert(MODES[channels]), traits


_size_is_free = threading.Lock()


@contextmanager
def any_size() -> Iterator[None]:
    """Lift Pillow's own limit, which is one of the process, for one image at a time; `max_pixels` stays in force."""
    from PIL import Image

    with _size_is_free:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def refuse_deep(image: Image, head: bytes) -> None:
    """Raise ValueError for more than 8 bits a channel: by Pillow's mode, and by the file where Pillow cuts them off."""
    if image.mode not in EIGHT_BIT:
        raise ValueError(f"pixel mode {image.mode}")
    bits = DEPTHS.get(image.format or "", lambda *_: 8)(image, head)
    if bits > 8:
        raise ValueError(f"{bits} bits a channel")


def _png(image: Image, head: bytes) -> int:
    return head[24]  # of IHDR, which comes first


def _tiff(image: Image, head: bytes) -> int:
    bits, kinds = (np.atleast_1d(image.tag_v2.get(tag, 1)) for tag in (258, 339))  # BitsPerSample, SampleFormat
    if 2 in kinds:
        raise ValueError("signed samples")
    return int(bits.max())


def _ppm(image: Image, head: bytes) -> int:
    arguments = image.tile[0].args  # (raw mode, maxval), where that is not 255
    return arguments[1].bit_length() if isinstance(arguments, tuple) else 8


def _jpeg2000(image: Image, head: bytes) -> int:
    start = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ, which gives each component's depth less 1 from byte 42 on
    count = int.from_bytes(head[start + 40 : start + 42], "big") if start >= 0 else 0
    return max(((depth & 127) + 1 for depth in head[start + 42 : start + 42 + 3 * count : 3]), default=8)


def _avif(image: Image, head: bytes) -> int:
    start = head.find(b"av1C")  # then version, profile, and flags: high_bitdepth is bit 6, twelve_bit bit 5
    flags = head[start + 6] if 0 <= start < len(head) - 6 else 0
    return (12 if flags & 32 else 10) if flags & 64 else 8


def _sgi(image: Image, head: bytes) -> int:
    return 8 * head[3]


def _dds(image: Image, head: bytes) -> int:
    return 16 if str(getattr(image, "pixel_format", "")).startswith("BC6") else 8


DEPTHS: dict[str, Callable[[Image, bytes], int]] = {
    "PNG": _png, "TIFF": _tiff, "PPM": _ppm, "JPEG2000": _jpeg2000, "AVIF": _avif, "SGI": _sgi, "DDS": _dds
}  # fmt: skip
"""Bits a channel, for the formats whose deep images Pillow may open in a mode of 8 bits."""


def _spread_transparency(image: Image, head: bytes) -> None:
    """Bring the transparent grey of a PNG of 2 or 4 bits to the 0..255 to which Pillow has spread its pixels."""
    grey = image.info.get("transparency")
    if image.mode == "L" and isinstance(grey, int) and head.startswith(b"\x89PNG") and head[24] in (2, 4):
        image.info["transparency"] = grey * 255 // (2 ** head[24] - 1)
