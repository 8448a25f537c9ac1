"""The command `diffusion-lab`: every program of the package under one name."""

from __future__ import annotations

import runpy
import sys

from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.output import tolerant

COMMANDS = {
    "train": ("train", "train a model, or resume a run"),
    "sample": ("sample", "sample from a checkpoint, and score the samples"),
    "compare": ("compare", "compare runs in one table"),
    "stats": ("stats", "measure reference statistics of a data set"),
    "verify": ("verify", "check a sampler against exact solutions"),
    "referee": ("referee", "score two sets of images with torch-fidelity"),
    "import": ("interop", "convert a checkpoint of another program"),
}
"""The module of each command, which `python -m diffusion_lab.<module>` runs as well, and what it does."""


def main() -> None:
    """Run the command named by the first argument with the other arguments, as `python -m` would."""
    tolerant()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        listed = "\n".join(f"  diffusion-lab {name:<8} {message}" for name, (_, message) in COMMANDS.items())
        print(f"{listed}\n\nMore about each: diffusion-lab COMMAND --help.")
    elif name in COMMANDS:
        sys.argv = [name, *words]
        runpy.run_module(f"diffusion_lab.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)
    else:
        refuse(ConfigError(f"unknown command {name}; commands: {', '.join(COMMANDS)}"))


if __name__ == "__main__":
    main()
