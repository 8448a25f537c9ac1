"""Loggers of optional packages: a missing package is refused, no value is sent twice, no failure ends the training."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say


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
    """A logger whose first failure is printed; training then continues without it.

    Args:
        sent: the (step, metric) that it has received before its run was resumed; they are not sent again.
        options: of Lightning's logger, which stands behind this class among the bases.
    """

    label, instead = "", "training continues"
    _failed = False

    def __init__(self, sent: AbstractSet[tuple[int, str]] = frozenset(), **options: Any) -> None:
        super().__init__(**options)
        self.sent, self._newest_sent = sent, max((step for step, _ in sent), default=-1)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values for a step."""
        new = {key: value for key, value in metrics.items() if (step, key) not in self.sent}
        if new:
            self.attempt(lambda: self.send(new, step))

    @rank_zero_only
    def log_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Log images (.png) and films (.gif), which are copied at once."""
        if step >= self._newest_sent:
            self.attempt(lambda: self.send_pictures(pictures, step))

    def send(self, values: Mapping[str, Any], step: int | None) -> None:
        """Send values that have not been sent, of any type that the logger takes."""
        super().log_metrics(values, step)

    def send_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Send pictures that have not been sent."""
        raise NotImplementedError

    def attempt(self, act: Callable[[], Any], instead: str | None = None) -> None:
        """Do something that may fail; `instead` says what is left then."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # of any class: training must go on
            self._failed = True
            self.abandon()
            say(f"{self.label} failed and is left out from here on ({first_line(error)}); {instead or self.instead}")

    def abandon(self) -> None:
        """What is to be done before the failure is printed."""


def media(module: Any, pictures: Mapping[str, Path]) -> dict[str, Any]:
    """Images and films as the modules wandb and trackio take them."""
    return {
        name: module.Video(str(path), format="gif") if path.suffix == ".gif" else module.Image(str(path))
        for name, path in pictures.items()
    }


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
