"""The command `diffusion-lab`: every program of the package under one name."""

from __future__ import annotations

import runpy
import sys

from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.output import tolerant

COMMANDS = {
    "train": ("train", "train a model, or go on with a run"),
    "sample": ("sample", "draw samples from a checkpoint, and score them"),
    "compare": ("compare", "runs side by side"),
    "stats": ("stats", "reference statistics of a data set"),
    "verify": ("verify", "a sampler against exact laws"),
    "referee": ("referee", "torch-fidelity's scores of two sets of images"),
    "import": ("interop", "a checkpoint of another program becomes one of ours"),
}
"""The module of each command, which `python -m diffusion_lab.<module>` runs as well, and what it does."""


def main() -> None:
    """Run the command that the first word names with the other words, as `python -m` would."""
    tolerant()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        listed = "\n".join(f"  diffusion-lab {name:<8} {message}" for name, (_, message) in COMMANDS.items())
        print(f"{listed}\n\nEach tells more by --help.")
    elif name in COMMANDS:
        sys.argv = [name, *words]
        runpy.run_module(f"diffusion_lab.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)
    else:
        refuse(ConfigError(f"{name} is no command; there are: {', '.join(COMMANDS)}"))


if __name__ == "__main__":
    main()
