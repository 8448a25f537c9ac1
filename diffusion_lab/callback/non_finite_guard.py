"""Stop training if the loss, gradient or weights are not finite, before they are saved."""

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
class Inputs:
    """Inputs of a loss and its values: data, noised data x (B, ...), times t (B,) or (), and losses (B,)."""

    data: Tensor
    x: Tensor
    t: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Pending:
    """The check of a step that may still run on a device: `bad` is valid after the event `checked`."""

    step: int
    inputs: list[Inputs]
    bad: Tensor
    checked: torch.cuda.Event | None


class NonFiniteGuard(OptionalHooks):
    """Raises `NonFinite` at the step whose loss or gradient is not finite; such weights are never saved.

    On the CPU the check runs before the optimiser step.  On a GPU that would synchronise with the device in every step;
    there the result is copied asynchronously and read one step later, and before anything is saved or validated.  All
    ranks reduce one number per step, and stop at the same step.  With precision 16-mixed only the loss is checked, as
    loss scaling makes some gradients infinite and skips those steps.

    Must come before all callbacks that store anything of a step.
    """

    def __init__(self) -> None:
        self._data = self._x = self._t = torch.empty(0)
        self._inputs: list[Inputs] = []
        self._pending: Pending | None = None
        self._hook: Any = None
        self.at_once = True

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._inputs, self._pending, self.at_once = [], None, model.device.type == "cpu"
        self._hook = model.denoiser.register_forward_pre_hook(self._store)
        model.before_clipping = lambda: self.check_step(trainer, model)

    def _store(self, denoiser: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._x, self._t = arguments[:2]

    def on_train_batch_start(self, trainer: pl.Trainer, model: Model, batch: Any, batch_idx: int) -> None:
        self._data = batch[0]

    def on_before_backward(self, trainer: pl.Trainer, model: Model, loss: Tensor) -> None:
        # Inputs of finite losses are dropped: with gradient accumulation they might not fit into memory.
        if not (self.at_once and math.isfinite(loss.item())):
            self._inputs.append(Inputs(self._data, self._x.detach(), self._t.detach(), model.image_losses))

    def check_step(self, trainer: pl.Trainer, model: Model) -> None:
        """Check this step (on a GPU: the previous one) between backward pass and optimiser step.

        Raises:
            NonFinite: on all ranks.
        """
        self.check_pending(trainer, model)
        inputs, self._inputs = self._inputs, []
        norm = torch.zeros(()) if trainer.precision == "16-mixed" else model.grad_norm.detach()
        if self.at_once and trainer.world_size == 1 and not inputs and math.isfinite(norm.item()):
            return
        if self.at_once:
            bad = torch.tensor(float(bool(inputs) or not math.isfinite(norm.item())))
        else:
            total = sum((one.losses.sum() for one in inputs), norm.to(model.device))
            bad = (~total.isfinite()).float()
        if trainer.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._pending = Pending(trainer.global_step + 1, inputs, *to_host(bad))
        if self.at_once:
            self.check_pending(trainer, model)

    def check_pending(self, trainer: pl.Trainer, model: Model) -> None:
        """Wait for the result of the pending check, if any.

        Raises:
            NonFinite: on all ranks, if a value was not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.checked is not None:
            pending.checked.synchronize()
        if pending.bad:
            late = trainer.global_step >= pending.step  # the optimiser has already changed the weights
            raise NonFinite(f"step {pending.step}: {diagnose(pending.inputs, trainer, model, late)}; {advice(trainer)}")

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        self.check_pending(trainer, model)
        found = ranks.gather(bad_parameters(model))
        if names := next(filter(None, found), None):
            message = f"{parameters_message(names)}: they are not saved"
            raise NonFinite(f"step {trainer.global_step}: {message}; {advice(trainer)}")

    def on_validation_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.check_pending(trainer, model)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.check_pending(trainer, model)

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        self.teardown(trainer, model, "fit")

    def teardown(self, trainer: pl.Trainer, model: Model, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook, model.before_clipping = None, None


def to_host(bad: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Copy a number to the host; from a CUDA device asynchronously, valid after the returned event."""
    if bad.device.type != "cuda":
        return bad.cpu(), None
    checked = torch.cuda.Event()
    copy = torch.empty((), pin_memory=True).copy_(bad, non_blocking=True)
    checked.record()
    return copy, checked


def diagnose(inputs: list[Inputs], trainer: pl.Trainer, model: Model, late: bool) -> str:
    """Describe what is not finite in a step: the loss on the first rank where it is not, or else the gradient."""
    with model.unsharded():  # that rank alone runs the network again
        found = ranks.gather(diagnose_loss(inputs, trainer, model, late))
    rank = next((rank for rank, message in enumerate(found) if message), None)
    if rank is None:
        return "the gradient is not finite, though the loss is" if late else diagnose_gradient(model)
    return f"on rank {rank} " * (len(found) > 1) + found[rank]


def diagnose_loss(inputs: list[Inputs], trainer: pl.Trainer, model: Model, late: bool) -> str | None:
    """Describe for which images of this rank's batch, at which times, and why the loss is not finite."""
    one = next((one for one in inputs if not one.losses.sum().isfinite()), None)
    if one is None:
        return None
    images = bad_items(one.losses)
    if not images:
        return f"the sum of the losses, each of which is finite, overflows (the largest is {one.losses.max():.3g})"
    times = one.t.expand(len(one.losses))[images].double()
    described = zip(images, times.tolist(), model.denoiser.process.sigma(times).tolist(), strict=True)
    where = shown([f"image {i} at t={t:.4g} (sigma {sigma:.3g})" for i, t, sigma in described])
    count = f"{len(images)} of {len(one.losses)} images of the batch"
    return f"the loss is not finite for {count}, {where}: {cause(one, images, trainer, model, late)}"


def cause(one: Inputs, images: list[int], trainer: pl.Trainer, model: Model, late: bool) -> str:
    """Return the first of data, noised data, weights, network output and loss that is not finite for these images."""
    if bad_items(one.data[images]):
        return "the data contain NaN or infinity"
    if bad_items(one.x[images]):
        return "the data are finite, the noised data are not: check the schedule"
    if names := bad_parameters(model):
        return "the data and the noise are finite" if late else parameters_message(names)
    with trainer.precision_plugin.forward_context():
        module = first_bad_module(model, one.x, one.t)
    if module is None:
        return "the network's output is finite: check the terms of the loss"
    return f"the network's output is not finite, first that of {module}"


@torch.no_grad()
def first_bad_module(model: Model, x: Tensor, t: Tensor) -> str | None:
    """Run the network again, and return its first module whose output is not finite."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def check(module: torch.nn.Module, _: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"{f'network.{name}'.rstrip('.')} ({type(module).__name__})")

        return check

    modules = model.network.named_modules() if isinstance(model.network, torch.nn.Module) else ()
    hooks = [module.register_forward_hook(hook(name)) for name, module in modules]
    try:
        with torch.compiler.set_stance("force_eager"):
            output = model.denoiser(x, t).eps
    finally:
        for one in hooks:
            one.remove()
    return next(iter(found), None if output.isfinite().all() else "network")


def diagnose_gradient(model: Model) -> str:
    """Describe which parameters' gradients are not finite although the loss is."""
    names = [name for name, p in model.network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if names:
        return f"the gradient of network.{shown(names)} is not finite, though the loss is"
    return "the gradient's norm overflows, though the loss is finite"


def bad_parameters(model: Model) -> list[str]:
    """Return the parameters (for a sharded network, shards of this rank) whose norm is not finite."""
    found = []
    for name, p in model.network.named_parameters():
        shard = p.to_local() if hasattr(p, "to_local") else p.detach()
        if not torch.linalg.vector_norm(shard, dtype=torch.promote_types(shard.dtype, torch.float32)).isfinite():
            found.append(name)
    return found


def parameters_message(names: list[str]) -> str:
    """Return the message for the result of `bad_parameters`."""
    return f"the weights network.{shown(names)} are not finite, or their norm is not"


def advice(trainer: pl.Trainer) -> str:
    """Return overrides that may help and are not in use."""
    group = trainer.optimizers[0].param_groups[0]
    overrides = [f"optimizer.lr={group.get('initial_lr', group['lr']) / 10:.2g}"]
    overrides += ["trainer.gradient_clip_val=1"] * (trainer.gradient_clip_val is None)
    overrides += ["trainer.precision=bf16-mixed"] * (trainer.precision == "16-mixed")
    overrides += ["trainer.detect_anomaly=true to see the operation"] * (not trainer._detect_anomaly)
    return f"try {' or '.join(overrides)}"
