"""Decode an image file, with regard to its bit depth, transparency, orientation and frames."""

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
MAX_PIXELS = 178_956_970  # Pillow refuses larger images as possible decompression bombs
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF")  # Pillow identifies but cannot decode them
HEAD = 65_536  # first bytes of a file, which contain the headers read below


@cache
def suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of the files that this Pillow can decode."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions()
    return frozenset(s for s, name in known.items() if name in Image.OPEN and name not in NOT_DECODED)


def read_image(
    file: BinaryIO, channels: int, background: Sequence[int] = (255, 255, 255), max_pixels: int = MAX_PIXELS
) -> tuple[Image, set[str]]:
    """Return the first frame, upright, as 8-bit grey (1 channel) or RGB (3) over `background`, and its traits.

    Traits are "transparent" (at least one pixel is) and "frames" (there are several).

    Raises ValueError for more than 8 bits per channel, which Pillow would silently truncate or clip, and for more than
    `max_pixels` pixels; and any error of Pillow for a damaged file.
    """
    from PIL import Image

    head = file.read(HEAD)
    file.seek(0)
    try:
        return _read(file, head, channels, background, max_pixels)
    except Image.DecompressionBombError:
        file.seek(0)
        with without_size_limit():
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
        check_bit_depth(image, head)
        traits = {"frames"} if getattr(image, "n_frames", 1) > 1 else set()
        upright = ImageOps.exif_transpose(image)  # loads the pixels
        if upright.has_transparency_data:
            _rescale_transparency(upright, head)
            clear = upright.convert("RGBA")
            if clear.getchannel("A").getextrema()[0] < 255:
                traits.add("transparent")
                upright = Image.alpha_composite(Image.new("RGBA", clear.size, (*background, 255)), clear)
        # The image is opaque now; a tRNS chunk left in `info` would be converted, too.
        upright.info.pop("transparency", None)
        return upright.convert(MODES[channels]), traits


_size_limit = threading.Lock()


@contextmanager
def without_size_limit() -> Iterator[None]:
    """Context without Pillow's size limit, which is global: one thread at a time; `max_pixels` still applies."""
    from PIL import Image

    with _size_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def check_bit_depth(image: Image, head: bytes) -> None:
    """Raise ValueError for more than 8 bits per channel, by Pillow's mode and by the header of the file."""
    if image.mode not in EIGHT_BIT:
        raise ValueError(f"pixel mode {image.mode}")
    bits = BIT_DEPTHS.get(image.format or "", lambda *_: 8)(image, head)
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


BIT_DEPTHS: dict[str, Callable[[Image, bytes], int]] = {
    "PNG": _png, "TIFF": _tiff, "PPM": _ppm, "JPEG2000": _jpeg2000, "AVIF": _avif, "SGI": _sgi, "DDS": _dds
}  # fmt: skip
"""Bits per channel, for the formats of which Pillow opens images of higher bit depth in an 8-bit mode."""


def _rescale_transparency(image: Image, head: bytes) -> None:
    """Scale the transparent grey value of a 2- or 4-bit PNG to 0..255, as Pillow scales the pixels."""
    grey = image.info.get("transparency")
    if image.mode == "L" and isinstance(grey, int) and head.startswith(b"\x89PNG") and head[24] in (2, 4):
        image.info["transparency"] = grey * 255 // (2 ** head[24] - 1)
