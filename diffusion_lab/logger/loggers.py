"""A run's loggers: always a CSV file; Weights & Biases, TensorBoard, MLflow and Trackio as configured."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.csv import CSVLogger
from diffusion_lab.logger.mlflow import MLflowOptions, open_mlflow, reopen_mlflow
from diffusion_lab.logger.optional import require
from diffusion_lab.logger.tensorboard import TensorBoardLogger, TensorBoardOptions
from diffusion_lab.logger.trackio import TrackioLogger, TrackioOptions, open_trackio, reopen_trackio
from diffusion_lab.logger.wandb import WandbLogger, WandbOptions, choose_id, lock, open_run, read_id
from diffusion_lab.logger.wandb_server import configured_mode, has_key
from diffusion_lab.output import say
from diffusion_lab.storage.revision import revision

LONGEST_NAME, LONGEST_TAG = 120, 64  # characters that W&B accepts
NOT_NAMED = ("paths", "hydra", "logger", "ckpt_path", "allow_changes")
"""Overrides that say where a run works, not what it is."""


def build_loggers(
    cfg: Mapping[str, Any],
    run_dir: str | Path,
    config: Mapping[str, Any],
    step: int = 0,
    checkpoint: str | Path | None = None,
) -> list[Logger]:
    """Open the loggers of the plain node `logger` on rank 0; none on other ranks.

    They record `config`, `run_dir` and the code's revision.  A run resumed in its directory resumes its runs of W&B,
    MLflow and Trackio.  One that branches off from `checkpoint`, of another directory, copies the numbers up to `step`
    into its CSV file.  No later step is logged twice.  End with `finish_loggers`.

    Raises:
        ConfigError: for an unknown key, if a package is missing, or for no server where that counts as an error.
    """
    if rank_zero_only.rank != 0:
        return []
    run_dir, checkpoint = Path(run_dir), checkpoint and Path(checkpoint).resolve()
    wandb, tensorboard, mlflow, trackio = _options(cfg)
    for package, options in (("mlflow", mlflow), ("trackio", trackio)):
        require(package, options.enabled)
    use_wandb, config = _wants_wandb(wandb), {**config, "run_dir": str(run_dir.resolve()), "revision": revision()}
    csv = CSVLogger(run_dir)
    loggers: list[Logger] = [csv]
    if tensorboard.enabled:
        loggers.append(TensorBoardLogger(run_dir, resumed_from=step))
        loggers[-1].log_hyperparams(config)
    before = checkpoint.parents[1] if checkpoint and checkpoint.parent.name == "checkpoints" else run_dir
    if not csv.path.exists() and (before / csv.path.name).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(before / csv.path.name, csv.path)
    logged = csv.truncate(step)
    if use_wandb:
        wandb = replace(wandb, id=choose_id(wandb, run_dir))
        sent = logged if wandb.id == read_id(run_dir) else frozenset()
        if read_id(run_dir) is None:  # keep what a user has changed on the server since
            wandb = named(wandb, config)
        run = open_run(wandb, run_dir, config)
        loggers.append(WandbLogger(run, run_dir, sent, lock(run_dir), wandb.log_model))
    for options, opened in ((mlflow, open_mlflow), (trackio, open_trackio)):
        loggers += [opened(options, run_dir, config, run_name(config), logged)] if options.enabled else []
    return loggers


def run_name(config: Mapping[str, Any]) -> str | None:
    """The model, the data and the other overrides."""
    return " ".join(words_of(config))[:LONGEST_NAME] or None


def words_of(config: Mapping[str, Any]) -> list[str]:
    """The names of the model and the data, and the other overrides that say what a run is."""
    choices = config.get("choices") or {}
    chosen = [str(choices[group]) for group in ("model", "data") if choices.get(group)]
    words = [word for word in config.get("overrides") or () if not word.lstrip("+~").startswith(NOT_NAMED)]
    return [*chosen, *(word for word in words if word.partition("=")[0] not in ("model", "data"))]


def named(options: WandbOptions, config: Mapping[str, Any]) -> WandbOptions:
    """Options with a name and tags; by default the model, the data and the other overrides."""
    tags = [word for word in dict.fromkeys(words_of(config)) if len(word) <= LONGEST_TAG]
    return replace(options, name=options.name or run_name(config), tags=options.tags or tags)


def reopen(run_dir: str | Path, cfg: Mapping[str, Any]) -> list[Logger]:
    """Open the loggers of a trained run for later results on rank 0; none on other ranks.

    These are the runs of W&B, MLflow and Trackio that the directory names, and TensorBoard, if `cfg`, the training's
    plain node `logger`, has them enabled; never the CSV file.  Log with the step of the checkpoint, under names that
    training does not use (sample/...), and end with `finish_loggers`.  Nothing is added to W&B's run while it is still
    being trained.
    """
    if rank_zero_only.rank != 0:
        return []
    run_dir, (wandb, tensorboard, mlflow, trackio) = Path(run_dir), _options(cfg)
    run_id, loggers = read_id(run_dir), []
    if tensorboard.enabled and (run_dir / "tensorboard").is_dir():
        loggers.append(TensorBoardLogger(run_dir, part="sample"))
    if mlflow.enabled and (logger := reopen_mlflow(run_dir)):
        loggers.append(logger)
    if trackio.enabled and (logger := reopen_trackio(trackio, run_dir)):
        loggers.append(logger)
    if run_id and _wants_wandb(wandb):
        held = lock(run_dir)
        if held is None:
            say(f"W&B's run {run_id} is still being trained: nothing is added to it")
            return loggers
        # Keep what a user has changed on the server since: name, group and tags are not sent again.
        wandb = replace(wandb, id=run_id, name=None, group=None, tags=(), log_model=False)
        run = open_run(wandb, run_dir, {"run_dir": str(run_dir.resolve()), "sample_revision": revision()})
        loggers.append(WandbLogger(run, run_dir, held=held))
    return loggers


def finish_loggers(loggers: Sequence[Logger], failed: bool = False) -> None:
    """Write what is in memory, upload checkpoints (logger.wandb.log_model), and end W&B's run."""
    rows = next((logger.row for logger in loggers if isinstance(logger, CSVLogger)), lambda step: {})
    with ExitStack() as stack:  # each is ended, also if another one raises
        for logger in loggers:
            stack.callback(logger.finalize, "failed" if failed else "success")
            if isinstance(logger, WandbLogger):
                stack.callback(logger.finish, failed, rows)
            elif isinstance(logger, TrackioLogger):
                stack.callback(logger.finish)


OPTIONS = {"wandb": WandbOptions, "tensorboard": TensorBoardOptions, "mlflow": MLflowOptions, "trackio": TrackioOptions}


def _options(cfg: Mapping[str, Any]) -> tuple[WandbOptions, TensorBoardOptions, MLflowOptions, TrackioOptions]:
    """The plain node as options; a logger that it does not contain is disabled."""
    nodes = {name: cfg.get(name, {"enabled": False}) for name in OPTIONS}
    targets = {name: f"{cls.__module__}.{cls.__name__}" for name, cls in OPTIONS.items()}
    return tuple(instantiate({**node, "_target_": targets[name]}, f"logger.{name}") for name, node in nodes.items())


def _wants_wandb(options: WandbOptions) -> bool:
    if options.enabled is False or configured_mode(options.mode) == "disabled":
        return False
    if options.enabled == "auto" and options.mode == "auto" and not has_key():
        return False
    found = importlib.util.find_spec("wandb")
    if found is not None and found.origin is not None:  # a folder ./wandb of earlier runs has no origin
        return True
    remedy = "wandb is not installed: pip install wandb, or say logger=csv"
    if options.enabled is True:
        raise ConfigError(remedy)
    say(f"W&B is configured here, but {remedy}; metrics go to the CSV file only")
    return False
