"""The command `python -m diffusion_lab.referee`: torch-fidelity's own scores of saved images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.output import tolerant

HELP = """\
Score saved images by torch-fidelity itself: FID, KID, Inception Score, precision and recall.

  python -m diffusion_lab.referee GENERATED REFERENCE [key=value ...]

GENERATED and REFERENCE are folders of PNG images, or .npy or .npz files of bytes (N, H, W, 1 or 3).
  weights=PATH       Inception's weights; else $TORCH_HOME/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth
  download=true      fetch that file if it is missing (96 MB); nothing is ever fetched otherwise
  digest=6726825d    first digits of the file's sha256, at least 8
  batch_size=64      images in the network at once
  subset_size=1000   images in each of KID's subsets: at most as many as there are
  device=cpu         or cuda; the GPU where there is one
The numbers go to standard output as JSON. Nothing is cached.
"""

OPTIONS: dict[str, Callable[[str], Any]] = {
    "weights": str,
    "download": {"true": True, "false": False}.__getitem__,
    "digest": str,
    "batch_size": int,
    "subset_size": int,
    "device": {"cpu": "cpu", "cuda": "cuda"}.__getitem__,
}
"""How the value of every option is read."""


def main(arguments: Sequence[str]) -> None:
    """Print the scores of two sets of images; exits with status 2 and one line on standard error if refused."""
    tolerant()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    try:
        places, options = _read(arguments)
        # Imported here: torch takes seconds, and a mistyped word must not wait for it.
        import torch

        from diffusion_lab.metric.referee import referee

        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        print(json.dumps(referee(*places, **options, progress=sys.stderr.isatty()), indent=2))
    except (ValueError, OSError, ImportError) as error:
        refuse(error)


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    places = [a for a in arguments if "=" not in a or Path(a).exists()]
    pairs = [a.split("=", 1) for a in arguments if a not in places]
    unknown = [key for key, _ in pairs if key not in OPTIONS] + [a for a in places if a.startswith("-")]
    if unknown:
        raise ConfigError(f"{unknown[0]} is no option here; allowed: {', '.join(f'{key}=...' for key in OPTIONS)}")
    if len(places) != 2:
        raise ConfigError(f"two sets of images are compared, GENERATED and REFERENCE; got {len(places)}")
    return places, {key: _value(key, text) for key, text in pairs}


def _value(key: str, text: str) -> Any:
    try:
        return OPTIONS[key](text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{key}={text} is none of its values: see python -m diffusion_lab.referee --help") from error
