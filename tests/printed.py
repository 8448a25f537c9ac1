"""The commands that the program prints, and what becomes of them where they are pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import zygote

ADVICE = re.compile(r"(?:resume|sample from it|do so with|evaluate samples against it):  (.+)$", re.MULTILINE)


def commands(said: str) -> list[str]:
    """Every command that a text advises."""
    return ADVICE.findall(said)


def paste(command: str, *more: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a printed command as a shell would, with further words behind it."""
    words = shlex.split(command)
    while re.match(r"\w+=", words[0]):
        key, _, value = words.pop(0).partition("=")
        environment[key] = value
    program = os.path.basename(words.pop(0))
    if program == "diffusion-lab":  # printed where it is on the PATH
        words = ["-m", "diffusion_lab", *words]
    else:
        assert program.startswith("python"), command
    return zygote.run(*words, *more, cwd=cwd, **environment)
