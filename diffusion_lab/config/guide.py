"""Checks of `guide` and `mask` of sample.py that need neither the model nor the contents of the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "diffusion_lab.control.Mask"


def complaint(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a control, or None."""
    control = config.get("control") or {}
    if not control:
        return None
    if not config.get("guide"):
        return "control=... needs a guide: guide=FILE or guide=FOLDER of images"
    operator, mask = control.get("operator"), config.get("mask")
    masked = isinstance(operator, Mapping) and operator.get("_target_") == MASK
    if masked and not mask:
        return "this control needs mask=FILE: white where pixels are generated, black where they are kept"
    if mask and operator and not masked:
        return f"mask={mask}: this control takes no mask: leave it out, or choose control/operator=mask"
    missing = [key for key in ("guide", "mask") if config.get(key) and not Path(config[key]).expanduser().exists()]
    return f"{missing[0]}={config[missing[0]]} does not exist: an image file or a folder is needed" if missing else None
