"""One training run: seed -> instantiate -> fit (with an evaluation at the end) -> print where the files are."""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from diffusion_lab import first_edition
from diffusion_lab.callback import Accuracy, Conclusion, Evaluation, Page
from diffusion_lab.callback.interrupt import Stopped
from diffusion_lab.callback.media import log_pictures
from diffusion_lab.config import origin, packages
from diffusion_lab.config.compose import plain
from diffusion_lab.config.environment import AGENT
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.trainer_keys import check_devices, count_in_steps
from diffusion_lab.data import DataModule
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.logger.loggers import build_loggers, finish_loggers
from diffusion_lab.model import Model, Training
from diffusion_lab.monkeypatches import set_timeout
from diffusion_lab.output import say
from diffusion_lab.run.changes import changes, refuse_changes, refuse_shapes
from diffusion_lab.run.data import add_labels, data_module, moved, places
from diffusion_lab.run.failure import explained
from diffusion_lab.run.initial import initialise
from diffusion_lab.run.lightning import OF_RANKS, Unprofiled, cluster, compile_network, quieten
from diffusion_lab.run.page import RunPage
from diffusion_lab.run.plan import check_room, size_on_disk
from diffusion_lab.run.rehearsal import prepare_features, rehearse_training
from diffusion_lab.run.report import announce, conclude, facts, say_limits
from diffusion_lab.storage import checkpoint_file, run_directory
from diffusion_lab.storage.atomic_file import write_text
from diffusion_lab.storage.run_directory import CONFIG, checkpoints, is_complete
from diffusion_lab.storage.run_lock import locked

CHOICES = (
    "model", "sde", "data", "schedule", "loss", "time_law", "network", "sampler", "likelihood", "guidance", "metric",
)  # fmt: skip
"""Groups whose chosen option is recorded by name in checkpoints and results."""


def train(config: DictConfig) -> None:
    """Train as configured, in Hydra's output directory."""
    quieten()
    choices, run_dir = HydraConfig.get().runtime.choices, Path(HydraConfig.get().runtime.output_dir)
    OmegaConf.set_struct(config, False)
    config.paths.run_dir = str(run_dir)
    settings = plain(config)
    settings["choices"] = {group: choices[group] for group in CHOICES}
    settings["overrides"] = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    settings["ckpt_path"] = after_restart(run_dir) or settings["ckpt_path"]
    resume = settings["ckpt_path"] and run_directory.find(settings["ckpt_path"], settings["paths"]["log_dir"])
    before = checkpoint_file.read(resume) if resume else None
    if before and "optimizer_states" not in before:
        advice = f"sample from it, or initialise a training with it: init_from={settings['ckpt_path']}"
        raise ConfigError(f"{resume} holds no training state to resume: {advice}")
    settings["init_from"] = before["config"].get("init_from") if before else settings["init_from"]
    started, where = before and before["config"].get(packages.RECORD), places(settings["data"])
    settings[packages.RECORD] = origin.origin(started)
    settings["data"] = moved(settings["data"], started, where)
    pl.seed_everything(settings["seed"] % 2**32, workers=True, verbose=False)
    data, model, trainer = set_up(settings, run_dir)
    if before and trainer.is_global_zero:
        ranks = len(before.get("random", []))
        ignored = [f"data.{key}" for key in where if Path(str(settings["data"][key])).expanduser().exists()]
        changed = refuse_changes(before["config"], settings, ranks, trainer.world_size, ignored)
        refuse_shapes(first_edition.rename(before["state_dict"], ours := model.state_dict()), ours)
        with as_config_error(ValueError):
            for part in (model, *(c for c in trainer.callbacks if hasattr(c, "check_resumed"))):
                part.check_resumed(before)
        say(f"resumes from step {before['global_step']:,}, {os.path.relpath(resume)}{changed}")
    step = before["global_step"] if before else 0
    del before
    with explained(run_dir, settings, "train"), locked(run_dir) if trainer.is_global_zero else nullcontext():
        fit(trainer, model, data, settings, run_dir, resume, step)


def fit(
    trainer: pl.Trainer,
    model: Training,
    data: DataModule,
    settings: dict[str, Any],
    run_dir: Path,
    resume: Path | None,
    step: int,
) -> None:
    """Train from `step`, that of the checkpoint `resume`, with all loggers open, and print the results."""
    loggers = build_loggers(settings["logger"], run_dir, settings, step, resume)
    trainer.loggers, done, page = loggers, False, None
    try:
        ending = Conclusion(step)
        trainer.callbacks.insert(0, ending)
        if trainer.is_global_zero:
            keep_configuration(run_dir / CONFIG, settings, step)
            announce(settings, data, model, trainer, run_dir, step)
            if ending.is_missing(trainer):
                say("its end was not reached: what is missing is made now")
            log_pictures(loggers, {"schedule": run_dir / "schedule.png"}, step)
            page = page_of(settings, run_dir, trainer)
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        if page:
            page.write_last(trainer)
        if trainer.is_global_zero:
            conclude(trainer, run_dir)
        done = True
    except Stopped as stopped:
        if page:
            page.write_last(trainer)
        if trainer.is_global_zero:
            say(f"{stopped}; resume:  {origin.command('train', run_dir)}")
        sys.exit(128 + stopped.signum)
    finally:
        finish_loggers(loggers, failed=not done)


def page_of(settings: dict[str, Any], run_dir: Path, trainer: pl.Trainer) -> Page | None:
    """The callback that writes the run's page after each image and evaluation; None with report=false."""
    if not settings.get("report", True):
        return None
    nodes = (settings["callback"].get(name) or {} for name in ("samples", "evaluation", "accuracy"))
    page = Page(RunPage(run_dir).write, [every for node in nodes if (every := node.get("every_n_steps"))])
    trainer.callbacks.append(page)
    return page


def set_up(settings: dict[str, Any], run_dir: Path) -> tuple[DataModule, Training, pl.Trainer]:
    """Build everything; refuse whatever is wrong with data, devices or options before the first step."""
    with as_config_error(OSError, ValueError, RuntimeError, MisconfigurationException):
        check_devices(settings["trainer"])
        data = data_module(settings["data"], "fit")
        parts = settings["trainer"]["accumulate_grad_batches"]
        count_in_steps(settings["trainer"], data.size("train"), data.batch_size * parts)
        add_labels(settings, data)
        model = instantiate(settings["model"], "model")
        model.check_training()
        if isinstance(model, Model):
            model.check_sampling()
        model.config = settings
        if settings.get("init_from") and not settings["ckpt_path"]:
            initialise(model, settings)
        callbacks = [made for made in instantiate(settings["callback"], "callback").values() if made is not None]
        for callback in (made for made in callbacks if hasattr(made, "check")):
            callback.check(data, model)
        # Loggers join later: only the first rank has them, and the rank is known once there is a trainer.
        keys = {key: value for key, value in settings["trainer"].items() if key not in OF_RANKS}
        if keys["val_check_interval"] is not None:  # ours counts optimiser steps, Lightning's counts batches
            keys["val_check_interval"] = int(keys["val_check_interval"]) * keys["accumulate_grad_batches"]
        trainer = instantiate({"profiler": Unprofiled(), **keys, "_partial_": True}, "trainer")(
            callbacks=callbacks,
            plugins=[checkpoint_file.AtomicCheckpointIO(), *cluster()],
            default_root_dir=str(run_dir),
            enable_checkpointing=False,
            logger=False,
        )
        set_timeout(trainer.strategy, settings["trainer"]["timeout"])
        if trainer.precision != settings["trainer"]["precision"]:  # Lightning would only warn and use another one
            raise ValueError(f"trainer.precision={settings['trainer']['precision']} needs a GPU: here, use bf16-mixed")
        data.trainer = trainer  # knows the number of ranks, which must divide the batch
        data.setup("fit")
        evaluation = next((c for c in callbacks if isinstance(c, Evaluation)), None)
        rehearse_training(settings, data, model, trainer, evaluation)
        if settings.get("compile"):
            compile_network(model.network, trainer.strategy.root_device)
        for callback in (c for c in callbacks if isinstance(c, Accuracy)):
            callback.facts = facts(settings["choices"], model, settings.get("seed"))
        if evaluation is not None:
            prepare_evaluation(evaluation, settings, data, model, trainer)
    return data, model, trainer


def prepare_evaluation(
    evaluation: Evaluation, settings: dict[str, Any], data: DataModule, model: Model, trainer: pl.Trainer
) -> None:
    """Fit or load the feature extractor now, so that missing weights are found before a long training."""
    choices = settings["choices"]
    evaluation.facts = facts(choices, model, settings.get("seed"), choices["sampler"], settings["sampler"])
    prepare_features(settings, evaluation, data, model, trainer)
    evaluator, place = evaluation.evaluator, Path(evaluation.run_dir)
    samples = evaluator.total * evaluator.scores_samples(data)
    check_room(size_on_disk(model, samples, evaluator), place, f"the {samples:,} samples of an evaluation")
    if trainer.is_global_zero:
        say_limits(evaluation.evaluator, data, bool(model.likelihood))
    evaluation.check_best(data, model)


def after_restart(run_dir: Path) -> str | None:
    """Return the newest complete checkpoint of a run whose ranks our agent starts, None if there is none yet.

    A new run has none; one that resumes does so from the newest one, after trainer.max_restarts as before.
    torchelastic's own count of restarts is no help: it differs between nodes.
    """
    found = checkpoints(run_dir) if AGENT in os.environ else []
    return next((str(path) for path in found if is_complete(path)), None)


def keep_configuration(path: Path, settings: dict[str, Any], step: int) -> None:
    """Write a run's configuration; a different earlier one is renamed to config_until_step_<step>.yaml."""
    if path.exists() and any(changes(OmegaConf.to_container(OmegaConf.load(path)), settings)):
        names = (f"config_until_step_{step:08d}{'_' * number}.yaml" for number in itertools.count())
        path.replace(next(new for new in map(path.with_name, names) if not new.exists()))
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(settings)))
