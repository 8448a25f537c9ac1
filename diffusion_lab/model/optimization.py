"""Optimisation: learning-rate schedule, skipped updates, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.model import sharding
from diffusion_lab.model.checks import ComponentError


class Optimization:
    """The part of a `Model` with Lightning's hooks around an optimiser step."""

    optimizer: Callable[..., torch.optim.Optimizer] | None
    warmup_steps: int
    decay_steps: int | None

    grad_norm: Tensor | None = None
    """Global norm of the last gradient before clipping."""

    before_clipping: Callable[[], None] | None = None
    updated = False

    def configure_optimizers(self) -> dict[str, Any]:
        if self.optimizer is None:
            raise ComponentError("the model has no optimizer and cannot be trained: set model.optimizer")
        optimizer = self.optimizer([*self.network.parameters(), *self.parameters_of_the_loss()])
        optimizer.register_step_post_hook(self._note_update)
        # Otherwise a fused optimiser would unscale the gradients of 16-mixed itself, after clipping and logging.
        optimizer._step_supports_amp_scaling = False
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameters_of_the_loss(self) -> list[torch.nn.Parameter]:
        """The trained parameters of the loss, such as a discriminator's: Adam updates each parameter on its own."""
        module = self.loss if isinstance(self.loss, torch.nn.Module) else torch.nn.Module()
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def on_train_start(self) -> None:
        """Use the optimiser settings of the configuration instead of those of a checkpoint."""
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            schedule, rate = config.scheduler, optimizer.defaults["lr"]
            schedule.base_lrs = [rate] * len(optimizer.param_groups)
            now = {"initial_lr": rate, "lr": rate * self.learning_rate_factor(schedule.last_epoch)}
            for group in optimizer.param_groups:
                group.update({**optimizer.defaults, **now})

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run the optimiser step and record in `updated` whether it happened: 16-mixed skips it after an overflow."""
        self.updated = False
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.updated and hasattr(self.loss, "after_update"):
            self.loss.after_update(self.network)

    def _note_update(self, *_: Any) -> None:
        self.updated = True

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the learning-rate schedule only if the weights were updated."""
        if self.updated:
            super().lr_scheduler_step(scheduler, metric)

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the learning rate at optimiser step 0, 1, ...: linear warm-up, then cosine decay."""
        warm = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if self.decay_steps is None:
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.decay_steps, 1.0)))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm, and keep the norm for logging."""
        trained = (p for group in optimizer.param_groups for p in group["params"])
        parameters = [p for p in trained if p.grad is not None]
        self.grad_norm = sharding.full(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if self.before_clipping is not None:  # clipping makes every gradient NaN if one is not finite
            self.before_clipping()
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.grad_norm)
