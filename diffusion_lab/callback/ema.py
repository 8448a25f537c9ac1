"""Exponential moving average (EMA) of the network's parameters, used for validation, sampling and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model
from diffusion_lab.model.sharding import distribute, gathered
from diffusion_lab.ranges import Count, Probability, UnitInterval, checked


class Average:
    """Average of a network's parameters: average <- d(n) average + (1 - d(n)) parameters after update n = 1, 2, ...

    Subclasses define d(n), `decay_at`.  The average is float32 (or the parameters' precision if that is higher), by
    parameter name, on the device of the parameters and sharded as they are; buffers are not averaged.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        self._parameters: list[Tensor] = []  # in the order of `weights`

    def decay_at(self, n: int) -> float:
        """The decay d(n) of update n = 1, 2, ..."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters of the network passed to `start`."""
        self.updates += 1
        pairs = zip(self._parameters, self.weights.values(), strict=True)
        parameters = [p if p.dtype is a.dtype else p.to(a.dtype) for p, a in pairs]
        torch._foreach_lerp_(list(self.weights.values()), parameters, 1 - self.decay_at(self.updates))

    def start(self, network: torch.nn.Module) -> None:
        """Initialise the average from the network's parameters, unless it was loaded from a checkpoint."""
        named = network.named_parameters()
        parameters = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32)) for name, p in named}
        initial = self.weights or {name: value.clone() for name, value in parameters.items()}
        self.weights = {name: distribute(initial[name], parameters[name]) for name in parameters}
        self._parameters = list(network.parameters())

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the average; of sharded weights, only on rank 0."""
        return {"updates": self.updates, "weights": gathered(self.weights)}

    def load(self, state: dict[str, Any], network: torch.nn.Module) -> None:
        """Continue the average of a checkpoint."""
        self.updates, self.weights = state["updates"], dict(state["weights"])
        self.start(network)


class Averaging(OptionalHooks):
    """Callback that updates `averages` after every optimiser step that changed the parameters."""

    averages: Sequence[Average] = ()
    _step = -1

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._step = trainer.global_step
        for average in self.averages:
            average.start(model.network)

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:  # not while gradients accumulate
            self._step = trainer.global_step
            if model.updated:
                self.update_averages()

    def update_averages(self) -> None:
        """Update every average with the current parameters."""
        for average in self.averages:
            average.update()


class EMA(Average, Averaging):
    """ema <- decay_n ema + (1 - decay_n) parameters after the n-th optimiser step, n = 1, 2, ...

    By default decay_n = decay (Ho et al. 2020).  With `warmup` (Song et al. 2021, models/ema.py) decay_n = min(decay,
    (1 + n) / (10 + n)), which gives the initial weights less weight.  With a half-life of H images (Karras et al. 2022,
    official code), B images per step and (n - 1) B images seen before,

        decay_n = 2^(-B / min(H, ramp (n - 1) B))

    The EMA replaces the parameters during validation, test and prediction; the training weights are restored, also
    after an exception.  A checkpoint always holds both: training weights in `state_dict`, the EMA in `ema`.

    Args:
        half_life: H, used instead of `decay` and `warmup`; None: they are used.
        ramp: largest half-life as a fraction of the images seen; 0: no such limit.
        batch_size: images in a batch, over all devices; None: that of the trainer's data module.

    Raises:
        ValueError: unless 0 <= decay < 1 and 0 <= ramp <= 1; at the start of the training, for a half-life without a
            batch size.
    """

    @checked
    def __init__(
        self,
        decay: Probability = 0.9999,
        warmup: bool = False,
        half_life: Count | None = None,
        ramp: UnitInterval = 0.05,
        batch_size: Count | None = None,
    ) -> None:
        super().__init__()
        self.decay, self.warmup = decay, warmup
        self.half_life, self.ramp, self.batch_size = half_life, ramp, batch_size
        self.images_per_step = batch_size or 1
        self.averages = [self]
        self._training_weights: list[tuple[Tensor, Tensor]] | None = None  # (parameter, value) while swapped

    @property
    def swapped(self) -> bool:
        """Whether the EMA currently replaces the parameters."""
        return self._training_weights is not None

    def decay_at(self, n: int) -> float:
        if self.half_life is None:
            return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        seen = max(n - 1, 0) * self.images_per_step
        half_life = min(self.half_life, self.ramp * seen) if self.ramp else self.half_life
        return 0.5 ** (self.images_per_step / half_life) if half_life else 0.0

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        if self.half_life is not None:
            batch_size = self.batch_size or getattr(trainer.datamodule, "batch_size", None)
            if batch_size is None:
                raise ValueError("EMA: a half-life in images needs batch_size=..., as the data have none")
            self.images_per_step = batch_size * trainer.accumulate_grad_batches
        super().on_train_start(trainer, model)

    @property
    def current_decay(self) -> float:
        """Decay of the latest update."""
        return self.decay_at(self.updates)

    @torch.no_grad()
    def swap_in(self, network: torch.nn.Module) -> None:
        """Replace the parameters by the EMA."""
        if self.swapped or not self.weights:
            return
        self._training_weights = [(p, p.detach().clone()) for p in network.parameters()]
        for (p, _), average in zip(self._training_weights, self.weights.values(), strict=True):
            p.copy_(average)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Restore the training weights."""
        for p, value in self._training_weights or ():
            p.copy_(value)
        self._training_weights = None

    @contextmanager
    def averaged(self, network: torch.nn.Module) -> Iterator[None]:
        """Context in which the network has the EMA weights; may be nested."""
        outermost = not self.swapped
        self.swap_in(network)
        try:
            yield
        finally:
            if outermost:
                self.swap_out()

    def on_validation_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.swap_in(model.network)

    def on_validation_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.swap_out()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.swap_out()

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        if self.swapped:
            names = [f"denoiser.network.{name}" for name in self.weights]
            trained = dict(zip(names, gathered([value for _, value in self._training_weights]), strict=True))
            checkpoint["state_dict"] = {k: trained.get(k, v) for k, v in checkpoint["state_dict"].items()}
        checkpoint["ema"] = {"decay": self.decay, "warmup": self.warmup, **self.state()}

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        if "ema" in checkpoint:
            self.load(checkpoint["ema"], model.network)


@contextmanager
def averaged(trainer: pl.Trainer, model: Model) -> Iterator[None]:
    """Context in which the model has the EMA weights, or the training weights if the trainer has no EMA.

    All ranks must enter it together; inside, the model runs without communication between ranks.
    """
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    with nullcontext() if ema is None else ema.averaged(model.network), model.unsharded():
        yield
