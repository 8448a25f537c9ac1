"""The command `diffusion-lab`: every program of the package under one name."""

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.output import tolerant

Main = Callable[[Sequence[str]], None]
"""The function of a command; its arguments are those of the command line."""


class Command(NamedTuple):
    """A command: its module, which `python -m` runs as well, what it does, and what completion offers for it.

    `composes` names the main configuration whose groups and keys are its overrides; `keys` are further arguments.
    """

    module: str
    message: str
    composes: str | None = None
    keys: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("train", "train a model, or resume a run", "train"),
    "sample": Command("sample", "sample from a checkpoint, and score the samples", "sample"),
    "compare": Command("compare", "compare runs in one table", None, ("by=", "out=")),
    "report": Command("report", "write a run on one page, report.html"),
    "distill": Command("distill", "distil a run into models of few steps", "train", ("steps=", "out=")),
    "ema": Command(
        "ema", "make post-hoc EMA weights of any profile, and score them", "sample", ("std=", "out=", "evaluate="),
    ),
    "stats": Command("stats", "measure reference statistics of a data set", "train", ("split=", "out=", "count=")),
    "verify": Command("verify", "check one part against exact answers", "train", ("out=",)),
    "referee": Command(
        "referee", "score two sets of images with torch-fidelity", None,
        ("weights=", "download=", "digest=", "batch_size=", "subset_size=", "device="),
    ),
    "export": Command(
        "export", "write a model as safetensors, or for diffusers", "sample", ("format=", "weights=", "out=", "push="),
    ),
    "import": Command("interop", "convert a checkpoint of another program", "train", ("out=",)),
    "completion": Command("completion", "print a script for completion with the Tab key"),
}  # fmt: skip


def main() -> None:
    """Run the command named by the first argument with the other arguments, as `python -m` would."""
    tolerant()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        listed = "\n".join(f"  diffusion-lab {name:<10} {command.message}" for name, command in COMMANDS.items())
        print(f"{listed}\n\nMore about each: diffusion-lab COMMAND --help.")
    elif name in COMMANDS:
        sys.argv = [name, *words]
        runpy.run_module(f"diffusion_lab.{COMMANDS[name].module}", run_name="__main__", alter_sys=True)
    else:
        refuse(ConfigError(f"unknown command {name}; commands: {', '.join(COMMANDS)}"))


def command(message: str, *refused: type[Exception]) -> Callable[[Main], Main]:
    """Decorator of a command's function: without arguments or for --help, print `message` instead of running it.

    A ConfigError, and the errors of the classes `refused`, are printed in one line; the exit status is then 2.
    """

    def decorate(run: Main) -> Main:
        @functools.wraps(run)
        def main(arguments: Sequence[str]) -> None:
            tolerant()
            if not arguments or {"-h", "--help"} & set(arguments):
                print(message, end="")
                return
            try:
                run(arguments)
            except (ConfigError, *refused) as error:
                refuse(error)

        return main

    return decorate


if __name__ == "__main__":
    main()
