"""Trackio, on request: a run in a local database, or in a Space if the user names one; resumed with its training."""

from __future__ import annotations

import contextlib
import io
import secrets
import shlex
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers.logger import Logger

from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.optional import BestEffort, first_line, media, read_record, require
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.run_directory import CONFIG

RECORD = "trackio_run.json"


@dataclass(frozen=True)
class TrackioOptions:
    """The keys of `logger.trackio`, explained in conf/logger/default.yaml; plain data."""

    enabled: bool = False
    project: str = "diffusion_lab"
    name: str | None = None


class TrackioLogger(BestEffort, Logger):
    """A run of Trackio: metrics by optimiser step, images and films; `open_trackio` passes the configuration.

    Args:
        run: what `trackio.init` returned.
        sent: see `BestEffort`.
    """

    label = "Trackio"

    def __init__(self, run: Any, sent: AbstractSet[tuple[int, str]] = frozenset()) -> None:
        super().__init__(sent)
        self.run = run

    @property
    def name(self) -> str:
        return self.run.project

    @property
    def version(self) -> str:
        return self.run.name

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        """Do nothing: `open_trackio` passes the configuration."""

    def send(self, values: Mapping[str, Any], step: int | None) -> None:
        self.run.log({key: float(value) for key, value in values.items()}, step=step)

    def send_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        import trackio

        self.run.log(media(trackio, pictures), step=step)

    def finish(self) -> None:
        """Write what is in memory, and end the run, also one that has failed."""
        self._failed = False
        self.attempt(self._end)

    @staticmethod
    def _end() -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # not run.finish, after which Trackio would finish it again at exit


def reopen_trackio(options: TrackioOptions, run_dir: Path) -> TrackioLogger | None:
    """The directory's run for later results; None if it has none."""
    if not (run_dir / RECORD).is_file():
        return None
    require("trackio")
    config = run_dir / CONFIG  # Trackio would forget the one before
    return open_trackio(options, run_dir, yaml.safe_load(config.read_bytes()) if config.is_file() else {})


def open_trackio(
    options: TrackioOptions,
    run_dir: Path,
    config: Mapping[str, Any],
    name: str | None = None,
    logged: AbstractSet[tuple[int, str]] = frozenset(),
) -> TrackioLogger:
    """Open the directory's run of Trackio, or a new one called `name` and four digits, as names are its only ids.

    Raises:
        ConfigError: if the store cannot be opened.
    """
    before = read_record(run_dir / RECORD)
    new = {"project": options.project, "name": f"{options.name or name or run_dir.name} {secrets.token_hex(2)}"}
    run = before or new
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            opened = trackio.init(
                **run, config=dict(config), resume="allow", embed=False, auto_log_cpu=False,
                auto_log_gpu=False,
            )  # fmt: skip
        write_json(run_dir / RECORD, run)
    except Exception as error:  # of any class
        raise ConfigError(f"logger.trackio cannot be opened: {first_line(error)}") from error
    if not before:
        say(f"trackio  trackio show --project {shlex.quote(run['project'])}")
    return TrackioLogger(opened, logged if before else frozenset())
