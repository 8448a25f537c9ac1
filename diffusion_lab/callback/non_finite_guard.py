"""Stopping at the step whose loss, gradient or weights are not finite, before they are averaged or saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.finite import NonFinite, bad_items, shown
from diffusion_lab.model import Model


@dataclass(frozen=True)
class Seen:
    """A batch on its way through the loss: data, noised data x (B, ...), times t (B,) or (), and its losses (B,)."""

    data: Tensor
    x: Tensor
    t: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Pending:
    """What a device has still to tell of a step: whether all was finite, once `told` has happened."""

    step: int
    seen: list[Seen]
    bad: Tensor
    checked: torch.cuda.Event | None


class NonFiniteGuard(OptionalHooks):
    """Ends training by `NonFinite` at the step whose loss or gradient is not finite, and saves no such weights.

    On the CPU it looks before the optimiser steps.  To look so early at a device the host would have to wait for it in
    every step: there the answer is copied beside the computation and read a step later, before anything is saved or
    validated, and at the end.  Several ranks agree on the answer, one number a step, so all stop at the same step and
    none waits for another.  With precision 16-mixed an infinite gradient is no fault: the loss is scaled up until that
    happens, and the step skipped; there only the loss counts.

    Comes before all callbacks that keep something of a step.
    """

    def __init__(self) -> None:
        self._data = self._x = self._t = torch.empty(0)
        self._seen: list[Seen] = []
        self._pending: Pending | None = None
        self._hook: Any = None
        self.at_once = True

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._seen, self._pending, self.at_once = [], None, model.device.type == "cpu"
        self._hook = model.denoiser.register_forward_pre_hook(self._remember)
        model.before_clipping = lambda: self.look(trainer, model)

    def _remember(self, denoiser: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._x, self._t = arguments[:2]

    def on_train_batch_start(self, trainer: pl.Trainer, model: Model, batch: Any, batch_idx: int) -> None:
        self._data = batch[0]

    def on_before_backward(self, trainer: pl.Trainer, model: Model, loss: Tensor) -> None:
        # What is known to be finite need not be remembered: of many batches to a step few would fit.
        if not (self.at_once and math.isfinite(loss.item())):
            self._seen.append(Seen(self._data, self._x.detach(), self._t.detach(), model.image_losses))

    def look(self, trainer: pl.Trainer, model: Model) -> None:
        """Judge the step, between its gradient and the optimiser; of a device, the step before.

        Raises:
            NonFinite: on all ranks.
        """
        self.read(trainer, model)
        seen, self._seen = self._seen, []
        norm = torch.zeros(()) if trainer.precision == "16-mixed" else model.grad_norm.detach()
        if self.at_once and trainer.world_size == 1 and not seen and math.isfinite(norm.item()):
            return
        if self.at_once:
            bad = torch.tensor(float(bool(seen) or not math.isfinite(norm.item())))
        else:
            total = sum((one.losses.sum() for one in seen), norm.to(model.device))
            bad = (~total.isfinite()).float()
        if trainer.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._pending = Pending(trainer.global_step + 1, seen, *beside(bad))
        if self.at_once:
            self.read(trainer, model)

    def read(self, trainer: pl.Trainer, model: Model) -> None:
        """Wait for what a device has still to tell.

        Raises:
            NonFinite: on all ranks, if it was bad.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.checked is not None:
            pending.checked.synchronize()
        if pending.bad:
            late = trainer.global_step >= pending.step  # the optimiser has spoilt the weights meanwhile
            raise NonFinite(f"step {pending.step}: {trouble(pending.seen, trainer, model, late)}; {advice(trainer)}")

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        self.read(trainer, model)
        found = ranks.gather(bad_parameters(model))
        if names := next(filter(None, found), None):
            checked = f"{enormous(names)}: they are not saved"
            raise NonFinite(f"step {trainer.global_step}: {checked}; {advice(trainer)}")

    def on_validation_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.read(trainer, model)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.read(trainer, model)

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.teardown(trainer, model, "fit")

    def teardown(self, trainer: pl.Trainer, model: Model, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook, model.before_clipping = None, None


def beside(bad: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A number on the host: at once, or from a CUDA device once the event has happened."""
    if bad.device.type != "cuda":
        return bad.cpu(), None
    checked = torch.cuda.Event()
    copy = torch.empty((), pin_memory=True).copy_(bad, non_blocking=True)
    checked.record()
    return copy, checked


def trouble(seen: list[Seen], trainer: pl.Trainer, model: Model, late: bool) -> str:
    """What is not finite in a step: what the first rank with a bad loss says of it, or the gradient of all ranks."""
    with model.unsharded():  # the one whose loss it is runs the network once more, alone
        found = ranks.gather(in_loss(seen, trainer, model, late))
    rank = next((rank for rank, checked in enumerate(found) if checked), None)
    if rank is None:
        return "the gradient is not finite, though the loss is" if late else in_gradient(model)
    return f"on rank {rank} " * (len(found) > 1) + found[rank]


def in_loss(seen: list[Seen], trainer: pl.Trainer, model: Model, late: bool) -> str | None:
    """For which images of this rank's batch the loss is not finite, at which times, and why."""
    one = next((one for one in seen if not one.losses.sum().isfinite()), None)
    if one is None:
        return None
    images = bad_items(one.losses)
    if not images:
        return f"the sum of the losses, each of which is finite, overflows (the largest is {one.losses.max():.3g})"
    times = one.t.expand(len(one.losses))[images].double()
    checked = zip(images, times.tolist(), model.denoiser.process.sigma(times).tolist(), strict=True)
    where = shown([f"image {i} at t={t:.4g} (sigma {sigma:.3g})" for i, t, sigma in checked])
    count = f"{len(images)} of {len(one.losses)} images of the batch"
    return f"the loss is not finite for {count}, {where}: {cause(one, images, trainer, model, late)}"


def cause(one: Seen, images: list[int], trainer: pl.Trainer, model: Model, late: bool) -> str:
    """Which term spoils the loss of these images: data, noise, weights, network or the loss itself."""
    if bad_items(one.data[images]):
        return "the data themselves hold NaN or infinity"
    if bad_items(one.x[images]):
        return "the data are finite, the noised data are not: look at the schedule"
    if names := bad_parameters(model):
        return "the data and the noise are finite" if late else enormous(names)
    with trainer.precision_plugin.forward_context():
        module = first_bad_module(model, one.x, one.t)
    if module is None:
        return "the network's output is finite: look at the terms of the loss"
    return f"the network's output is not finite, first that of {module}"


@torch.no_grad()
def first_bad_module(model: Model, x: Tensor, t: Tensor) -> str | None:
    """The first module of the network whose output is not finite at x, when it is run once more."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: torch.nn.Module, _: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"{f'network.{name}'.rstrip('.')} ({type(module).__name__})")

        return look

    modules = model.network.named_modules() if isinstance(model.network, torch.nn.Module) else ()
    hooks = [module.register_forward_hook(hook(name)) for name, module in modules]
    try:
        with torch.compiler.set_stance("force_eager"):
            output = model.denoiser(x, t).eps
    finally:
        for one in hooks:
            one.remove()
    return next(iter(found), None if output.isfinite().all() else "network")


def in_gradient(model: Model) -> str:
    """Which parameters' gradients are not finite while the loss is."""
    names = [name for name, p in model.network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if names:
        return f"the gradient of network.{shown(names)} is not finite, though the loss is"
    return "the gradient's norm overflows, though the loss is finite"


def bad_parameters(model: Model) -> list[str]:
    """Parameters (of a sharded network, this rank's parts) whose norm is not finite."""
    found = []
    for name, p in model.network.named_parameters():
        own = p.to_local() if hasattr(p, "to_local") else p.detach()
        if not torch.linalg.vector_norm(own, dtype=torch.promote_types(own.dtype, torch.float32)).isfinite():
            found.append(name)
    return found


def enormous(names: list[str]) -> str:
    """What is said of parameters that `bad_parameters` has found."""
    return f"the weights network.{shown(names)} are not finite, or their norm is not"


def advice(trainer: pl.Trainer) -> str:
    """What may help, in words for the command line, of what is not in use yet."""
    group = trainer.optimizers[0].param_groups[0]
    words = [f"optimizer.lr={group.get('initial_lr', group['lr']) / 10:.2g}"]
    words += ["trainer.gradient_clip_val=1"] * (trainer.gradient_clip_val is None)
    words += ["trainer.precision=bf16-mixed"] * (trainer.precision == "16-mixed")
    words += ["trainer.detect_anomaly=true to see the operation"] * (not trainer._detect_anomaly)
    return f"try {' or '.join(words)}"
