"""MLflow, on request: a run in a local database or on a server, continued when its training is resumed."""

from __future__ import annotations

import functools
import logging
import os
import shlex
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.config.class_rules import leaves
from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.optional import BestEffort, first_line, read_record, require
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.lock import exclusive

RECORD = "mlflow_run.json"

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Variables that are set unless the user has: nothing is sent unasked, and a server that is away blocks no training."""


@dataclass(frozen=True)
class MLflowOptions:
    """The keys of `logger.mlflow`, explained in conf/logger/default.yaml; plain data."""

    enabled: bool = False
    experiment: str = "diffusion_lab"
    name: str | None = None
    tracking_uri: str | None = None


class MLflowLogger(BestEffort, loggers.MLFlowLogger):
    """A run of MLflow: metrics by optimiser step, the configuration as parameters, images and films.

    Args:
        run_id: of the run, which exists.
        tracking_uri: where it is stored.
        sent: see `BestEffort`.
        ends: whether the run ends with this logger.
    """

    label = "MLflow"

    def __init__(
        self, run_id: str, tracking_uri: str, sent: AbstractSet[tuple[int, str]] = frozenset(), ends: bool = True
    ) -> None:
        super().__init__(sent, tracking_uri=tracking_uri, run_id=run_id)
        self.ends = ends

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        """Log the configuration; MLflow lets no parameter change, so that those of a resumed run stay."""
        self.attempt(lambda: self._log_new(params))

    def _log_new(self, params: Mapping[str, Any]) -> None:
        known = self.experiment.get_run(self.run_id).data.params
        flat = {key: value for key, value in leaves(params).items() if key not in known}
        super().log_hyperparams(flat)

    def send(self, values: Mapping[str, Any], step: int | None) -> None:
        super().send({key: float(value) for key, value in values.items()}, step)

    def send_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Send images, which MLflow shows by step, and films as artifacts."""
        for name, path in pictures.items():
            if path.suffix == ".gif":
                self.experiment.log_artifact(self.run_id, str(path), f"{name}/step_{step:08d}")
            else:
                with Image.open(path) as image:
                    self.experiment.log_image(self.run_id, image.convert("RGB"), key=name, step=step)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run."""
        if self.ends:
            self.attempt(functools.partial(super().finalize, status))


def set_environment() -> None:
    """Set the variables of `ENVIRONMENT` that are not set."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def open_mlflow(
    options: MLflowOptions,
    run_dir: Path,
    config: Mapping[str, Any],
    name: str | None,
    logged: AbstractSet[tuple[int, str]],
) -> MLflowLogger:
    """Open the directory's run of MLflow, or a new one called `name`, and log the configuration.

    Raises:
        ConfigError: if the store cannot be opened.
    """
    before = read_record(run_dir / RECORD)
    folder = Path((config.get("paths") or {}).get("log_dir") or run_dir).resolve() / "mlflow"
    uri = before.get("tracking_uri") or options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    local, uri = not uri, uri or f"sqlite:///{folder / 'mlflow.db'}"
    try:
        with exclusive(folder / ".lock"):  # only one of a sweep's jobs makes the tables
            run_id = _run(uri, options, before.get("run_id"), name, folder / "artifacts" if local else None)
        write_json(run_dir / RECORD, {"run_id": run_id, "tracking_uri": uri})
    except Exception as error:  # of any class that a store raises
        raise ConfigError(f"logger.mlflow: {uri} cannot be opened: {first_line(error)}") from error
    say(
        f"mlflow   mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else f"mlflow   {uri}"
    )
    logger = MLflowLogger(run_id, uri, logged if before else frozenset())
    logger.log_hyperparams(config)
    return logger


def _run(uri: str, options: MLflowOptions, run_id: str | None, name: str | None, artifacts: Path | None) -> str:
    """The id of a run, which is running from now on."""
    set_environment()
    from mlflow.tracking import MlflowClient

    for library in ("mlflow", "alembic"):  # which tell of each table that they make; importing them sets their levels
        logging.getLogger(library).setLevel(logging.WARNING)
    if artifacts is not None:
        artifacts.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    if run_id:
        client.update_run(run_id, status="RUNNING")
        return run_id
    found = client.get_experiment_by_name(options.experiment)
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment(options.experiment, artifact_location=artifacts and artifacts.as_uri())
    )
    return client.create_run(experiment, run_name=options.name or name).info.run_id


def reopen_mlflow(run_dir: Path) -> MLflowLogger | None:
    """The directory's run for later results; None if it has none."""
    before = read_record(run_dir / RECORD)
    if not before:
        return None
    require("mlflow")
    set_environment()
    return MLflowLogger(before["run_id"], before["tracking_uri"], ends=False)
