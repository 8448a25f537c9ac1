"""Loggers of optional packages: a missing package is refused, and a logger that fails does not end the training."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import atomic_write


def require(package: str, enabled: bool = True) -> None:
    """Refuse an enabled logger whose package is missing; a folder of that name in the working directory does not count.

    Raises:
        ConfigError: with the command that installs it.
    """
    found = importlib.util.find_spec(package)
    if enabled and (found is None or found.origin is None):
        remedy = f'pip install "diffusion_lab[{package}]" (in a checkout: pip install -e ".[{package}]")'
        raise ConfigError(f"logger.{package} needs the package {package}: {remedy}")


class BestEffort:
    """A logger whose first failure is printed; training then continues without it."""

    label = ""
    _failed = False

    def attempt(self, act: Callable[[], Any], instead: str = "training continues") -> None:
        """Do something that may fail; `instead` says what is left then."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # of any class: training must go on
            self._failed = True
            self.abandon()
            say(f"{self.label} failed and is left out from here on ({first_line(error)}); {instead}")

    def abandon(self) -> None:
        """What is to be done before the failure is printed."""


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def read_record(path: Path) -> dict[str, str]:
    """The record of a directory's run; empty if it has none, or a damaged one."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        say(f"{path} is damaged and is left out")
        return {}


def write_record(path: Path, run: dict[str, str]) -> None:
    """Keep in a run's directory which run of the logger is its own, for resuming."""
    with atomic_write(path) as file:
        file.write(json.dumps(run).encode())
