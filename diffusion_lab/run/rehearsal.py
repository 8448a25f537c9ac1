"""Rehearse a command: process two items in every step of it before anything is written to a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.strategies import ModelParallelStrategy

from diffusion_lab.callback import Evaluation
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.data import DataModule
from diffusion_lab.errors import as_config_error
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.model import Model, rehearse
from diffusion_lab.model.rehearsal import random_state_kept
from diffusion_lab.output import say


def rehearse_training(
    settings: Mapping[str, Any], data: DataModule, model: Model, trainer: pl.Trainer, evaluation: Evaluation | None
) -> None:
    """Try every step of a training on its device; ranks started by this run skip it.

    A network that may not fit on a single device (trainer=fsdp) is tried on the CPU.

    Raises:
        ValueError: for a component with a wrong result.
    """
    wanted, model.rehearsal = settings.get("rehearsal", True), False
    if not wanted or cluster_ranks()[1] > 0:
        return
    planned = evaluation and [(evaluation.at_end, evaluation.evaluator), (evaluation.every_n_steps, evaluation.during)]
    evaluators = [evaluator for wanted, evaluator in planned or () if wanted]
    scored = any(evaluator.likelihood_samples != 0 for evaluator in evaluators)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    notes = rehearse(
        model,
        data.images("train", 2),
        device="cpu" if sharded else trainer.strategy.root_device,
        likelihoods=list(model.likelihood) if scored else (),
        context=trainer.precision_plugin.forward_context,
        convert=trainer.precision_plugin.convert_module,
    )
    for note in notes if trainer.is_global_zero else ():
        say(f"warning  {note}")


def rehearse_sampling(model: Model, fabric: Fabric, likelihoods: Sequence[str]) -> None:
    """Try every step of sampling; ranks started by this run skip it.

    Raises:
        ConfigError: for a component with a wrong result.
    """
    if cluster_ranks()[1] > 0:
        return
    images = torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with as_config_error(ValueError):
        notes = rehearse(model, images, training=False, likelihoods=likelihoods, context=fabric.autocast)
    for note in notes if rank_zero_only.rank == 0 else ():
        say(f"warning  {note}")


def prepare_features(
    settings: Mapping[str, Any], evaluation: Evaluation, data: DataModule, model: Model, trainer: pl.Trainer
) -> None:
    """Fit or load the feature extractor of an evaluation, and try it.

    Raises:
        FileNotFoundError: if its weights are missing, unless no evaluation needs them.
        ValueError: if it cannot process these images.
    """
    evaluator, device = evaluation.evaluator, trainer.strategy.root_device
    try:
        evaluator.prepare(data, device)
    except FileNotFoundError as error:
        if evaluation.at_end or evaluation.every_n_steps:
            raise
        evaluator.features = None
        if trainer.is_global_zero:
            say(f"the Fréchet distance is left out of this run's evaluation: {error}")
    evaluation.during.features = evaluator.features
    if settings.get("rehearsal", True):
        rehearse_features(evaluator, model, device)


def rehearse_features(evaluator: Evaluator, model: Model, device: torch.device) -> None:
    """Try the feature extractor on two images.

    Raises:
        ValueError: if it does not return one row of finite numbers per image.
    """
    if evaluator.features is None:
        return
    name = type(evaluator.features).__name__
    with random_state_kept(device):
        images = torch.rand(2, *model.shape, device=device)
        try:
            rows = evaluator.features(images)
        except Exception as error:  # of any class: the network may be the user's
            raise ValueError(f"metric.features ({name}) cannot take images {tuple(images.shape)}: {error}") from error
    if rows.ndim != 2 or len(rows) != 2 or not rows.isfinite().all():
        raise ValueError(
            f"metric.features ({name}) returns shape {tuple(rows.shape)} for 2 images: 2 finite rows are needed"
        )
