"""The command `python -m diffusion_lab.referee`: scores of saved images, computed by torch-fidelity."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.cli import command
from diffusion_lab.errors import ConfigError

HELP = """\
Score saved images with torch-fidelity: FID, KID, Inception Score, precision and recall.

  python -m diffusion_lab.referee GENERATED REFERENCE [key=value ...]

GENERATED and REFERENCE are folders of PNG images, or .npy or .npz files of bytes (N, H, W, 1 or 3).
  weights=PATH       Inception's weights; default $TORCH_HOME/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth
  download=true      download that file if it is missing (96 MB); otherwise nothing is downloaded
  digest=6726825d    first digits of the file's sha256, at least 8
  batch_size=64      images in the network at once
  subset_size=1000   images in each of KID's subsets, at most the number of images
  device=cpu         or cuda; default is the GPU if there is one
The scores are printed to standard output as JSON. Nothing is cached.
"""

OPTIONS: dict[str, Callable[[str], Any]] = {
    "weights": str,
    "download": {"true": True, "false": False}.__getitem__,
    "digest": str,
    "batch_size": int,
    "subset_size": int,
    "device": {"cpu": "cpu", "cuda": "cuda"}.__getitem__,
}
"""Parser of the value of each option."""


@command(HELP, ValueError, OSError, ImportError)
def main(arguments: Sequence[str]) -> None:
    """Print the scores of two sets of images."""
    places, options = _read(arguments)
    # Imported here: torch takes seconds to import, and a typo should be refused at once.
    import torch

    from diffusion_lab.metric.referee import referee

    options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(referee(*places, **options, progress=sys.stderr.isatty()), indent=2))


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    places = [a for a in arguments if "=" not in a or Path(a).exists()]
    pairs = [a.split("=", 1) for a in arguments if a not in places]
    unknown = [key for key, _ in pairs if key not in OPTIONS] + [a for a in places if a.startswith("-")]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; allowed: {', '.join(f'{key}=...' for key in OPTIONS)}")
    if len(places) != 2:
        raise ConfigError(f"two sets of images are needed, GENERATED and REFERENCE; got {len(places)}")
    return places, {key: _value(key, text) for key, text in pairs}


def _value(key: str, text: str) -> Any:
    try:
        return OPTIONS[key](text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{key}={text} is not valid: see python -m diffusion_lab.referee --help") from error
