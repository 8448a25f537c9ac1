"""Pictures inside a page: the file itself as a data URI, smaller if it is large."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES, MOST_ANIMATION = 300_000, 6_000_000
"""Largest picture that is included as it is, and largest animation."""

SIDE, QUALITY = 1600, 85
"""Longest side in pixels and JPEG quality of a picture that is made smaller."""


@dataclass(frozen=True)
class Picture:
    """A picture of a page; `caption` is also what is read to those who do not see it."""

    source: str
    width: int
    height: int
    caption: str


def picture(path: Path, caption: str, most_bytes: int = MOST_BYTES) -> Picture | None:
    """The picture of a .png or .gif file; None if there is none, it is damaged, or an animation is too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        data, kind = path.read_bytes(), path.suffix[1:]
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if kind == "gif" and len(data) > MOST_ANIMATION:
                return None
            if kind != "gif" and len(data) > most_bytes:
                image = image.convert("RGB")
                image.thumbnail((SIDE, SIDE))
                file = io.BytesIO()
                image.save(file, format="JPEG", quality=QUALITY)
                (width, height), data, kind = image.size, file.getvalue(), "jpeg"
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width, height, caption)
