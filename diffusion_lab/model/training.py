"""Training of a denoiser: batches, losses on held-out data, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from diffusion_lab import first_edition, ranks
from diffusion_lab.denoiser import Denoiser, check_labels
from diffusion_lab.model import sharding
from diffusion_lab.model.checks import check_end
from diffusion_lab.model.labels import Labels
from diffusion_lab.model.optimization import Optimization
from diffusion_lab.model.options import Loss
from diffusion_lab.model.rehearsal import rehearse_fit
from diffusion_lab.noise import image_generators
from diffusion_lab.ranges import Count, Levels, NonNegativeInt, checked


class Training(Optimization, pl.LightningModule):
    """Connects a denoiser, or a classifier of noised data, with its training loss and its optimiser.

    Args:
        denoiser: network, process and parameterization.
        loss: training loss.
        optimizer: parameters -> optimiser; None for a model that is not trained.
        shape: shape of one data point, (C, H, W) or (2,).
        grey_levels: number of values of an image's pixel; None for points, latents, fields and other real numbers,
            which are not rescaled.
        dequantize: train on uniformly dequantized images, (k + u) / grey_levels (NCSN).
        warmup_steps: the learning rate is scaled by min(step / warmup_steps, 1); the first update has rate 0, as
            published.
        decay_steps: cosine decay of the learning rate to 0 at this step; None: no decay.
        channels_last: memory format of the network's weights, for faster convolutions.
        labels: the classes of the data, for a network that is conditioned on them or predicts them.

    `config` is the composed configuration as plain containers, saved in every checkpoint so that it can be loaded on
    its own.  With `rehearsal`, `fit` first tries two items on a copy of the model (`rehearse`).
    """

    rehearsal = True

    @checked
    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        shape: Sequence[Count],
        grey_levels: Levels | None = None,
        dequantize: bool = False,
        warmup_steps: NonNegativeInt = 0,
        decay_steps: Count | None = None,
        channels_last: bool = True,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.loss, self.labels = denoiser, loss, labels
        self.optimizer, self.warmup_steps, self.decay_steps = optimizer, warmup_steps, decay_steps
        if labels is not None:
            denoiser.classes, denoiser.null = labels.classes, labels.null
        self.shape, self.grey_levels, self.dequantize = tuple(shape), grey_levels, dequantize
        if grey_levels is None and self.is_image:
            denoiser.parameterization = replace(denoiser.parameterization, bounded=False)
        self.image_losses: Tensor | None = None
        self._held_out_losses: list[Tensor] = []
        self.config: dict[str, Any] | None = None
        if channels_last and self.is_image and isinstance(denoiser.network, torch.nn.Module):
            denoiser.network.to(memory_format=torch.channels_last)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss":  # a plain function may replace a loss that is a module
            self.__dict__.get("_modules", {}).pop("loss", None)
        super().__setattr__(name, value)

    @property
    def network(self) -> torch.nn.Module:
        """The network, which has all trained parameters."""
        return self.denoiser.network

    @property
    def is_image(self) -> bool:
        """Whether data points are arrays (C, H, W), not vectors such as 2D points."""
        return len(self.shape) == 3

    @property
    def has_grey_levels(self) -> bool:
        """Whether data points are images with grey levels, not real numbers such as latents and fields."""
        return self.is_image and self.grey_levels is not None

    @property
    def kind(self) -> str:
        """The name of data points in messages."""
        return "images" if self.has_grey_levels else "samples"

    def encode(self, data: Tensor) -> Tensor:
        """Rescale images from [0, 1] to the model's range; data without grey levels are unchanged."""
        row = self.denoiser.parameterization
        return data if self.grey_levels is None else row.low + (row.high - row.low) * data

    def full_precision(self, data: Tensor) -> Tensor:
        """Data in the network's precision, at least float32: with bf16-true Lightning casts batches to bfloat16."""
        return data.to(torch.promote_types(self.denoiser.network_dtype or data.dtype, torch.float32))

    def conditional_denoiser(
        self, labels: Tensor | None = None, augmentation: Tensor | None = None, training: bool = False
    ) -> Denoiser:
        """The denoiser bound to labels (B,) and augmentation labels, if any; with label dropout while training."""
        augmented = {} if augmentation is None else {"augmentation": augmentation}
        if self.labels is None:
            return self.denoiser.given(**augmented) if augmented else self.denoiser
        if labels is None:
            raise ValueError("this model needs labels: batches must be (x, label)")
        check_labels(labels, self.labels.classes)  # before dropout: the null label is not a class of the data
        labels = self.labels.with_dropout(labels) if training else labels
        return self.denoiser.given(label=labels.to(self.device), **augmented)

    def check_training(self) -> None:
        """Prepare the loss; raise ValueError if it does not suit the denoiser and its data."""
        if hasattr(self.loss, "check"):
            self.loss.check(self.denoiser, self.shape)

    def check_resumed(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the loss cannot continue from a checkpoint, such as with another teacher."""
        if hasattr(self.loss, "load_training_state"):
            self.loss.load_training_state(checkpoint.get("loss", {}))

    def configure_model(self) -> None:
        """Prepare the loss; shard the network across ranks if the strategy requires it (trainer=fsdp)."""
        self.check_training()
        if self.device_mesh is not None:
            sharding.shard(self.network, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        check_end(self.trainer)
        for warning in rehearse_fit(self) if self.rehearsal else ():
            rank_zero_warn(warning)

    def paired(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The loss's argument `noise`, if batches have it."""
        return {"noise": self.full_precision(batch[3])} if len(batch) > 3 else {}

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The mean loss of a batch: see `data.base.Batch`."""
        data = self.full_precision(batch[0])
        if self.dequantize and self.grey_levels is not None:
            data = (data * (self.grey_levels - 1) + torch.rand_like(data)) / self.grey_levels
        denoiser = self.conditional_denoiser(*batch[1:3], training=True)
        losses = self.loss(denoiser, self.encode(data), **self.paired(batch))
        self.image_losses = losses.detach()
        return losses.mean()

    def on_validation_start(self) -> None:
        sharding.gather(self.network)  # ranks may have unequal numbers of batches

    def on_validation_end(self) -> None:
        sharding.scatter(self.network)

    def on_validation_epoch_start(self) -> None:
        self._held_out_losses = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The training loss on held-out data, in full precision, with the same time and noise at every validation.

        Time and noise of an item depend on its index alone, and rank r of W has items r, r + W, ... (`DataModule`), so
        the result does not depend on the number of ranks or the batch size.
        """
        rank, world = ranks.rank_and_world()
        first = rank + world * sum(map(len, self._held_out_losses))
        indices = range(first, first + world * len(batch[0]), world)
        with torch.autocast(self.device.type, enabled=False):
            data = self.encode(self.full_precision(batch[0]))
            denoiser, generators = self.conditional_denoiser(*batch[1:2]), image_generators(0, indices, self.device)
            loss = self.loss(denoiser, data, generators, **self.paired(batch))
        self._held_out_losses.append(loss.detach().float())

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all items (Lightning's own mean divides by a rounded count with the gloo backend)."""
        losses = torch.cat(self._held_out_losses)
        totals, counts = zip(*ranks.gather((losses.sum().item(), len(losses))), strict=True)
        # "step" is Lightning's key of the row: without it the value is logged one row too early.
        self.log_dict({"val/loss": sum(totals) / sum(counts), "step": float(self.global_step)}, sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The Evaluation callback computes the test metrics."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the configuration, and what the loss keeps besides its buffers."""
        checkpoint["config"] = self.config
        if hasattr(self.loss, "training_state"):
            checkpoint["loss"] = self.loss.training_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rename weights of the first edition, and convert batch counts to the current gradient accumulation.

        Checkpoints are saved between optimiser steps only.
        """
        checkpoint["state_dict"] = first_edition.rename(checkpoint["state_dict"], self.state_dict())
        if "replay" in checkpoint:  # where earlier versions kept the state of the loss
            checkpoint["loss"] = {"replay": checkpoint.pop("replay")}
        self.check_resumed(checkpoint)
        if ema := checkpoint.get("ema"):
            ema["weights"] = first_edition.rename(ema["weights"], self.network.state_dict())
        sharding.distribute_states(checkpoint.get("optimizer_states", ()), list(self.network.parameters()))
        before = ((checkpoint.get("config") or {}).get("trainer") or {}).get("accumulate_grad_batches", 1)
        now = self.trainer.accumulate_grad_batches
        for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(counts, dict):
                counts.update({key: value * now // before for key, value in counts.items()})

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Context in which a sharded network is gathered, so that a rank can call it without the others.

        All ranks must enter together, unless they are already inside one.
        """
        gathered = sharding.gather(self.network)
        try:
            yield
        finally:
            if gathered:
                sharding.scatter(self.network)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in eval mode, in which dropout is off; the previous mode is restored."""
        was_training = self.training
        self.eval()
        try:
            with self.unsharded():
                yield
        finally:
            self.train(was_training)
