"""The rehearsal: before the first step, all components of a model are tried with two items, on a copy of the model.

Encoding, the loss with every type of generator, the backward pass, the sampler, decoding and, if requested, the
likelihoods: any error is reported in one line.  The rehearsal does not change the training.
"""

from __future__ import annotations

import copy
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab.model.checked_network import CheckedNetwork, check_network
from diffusion_lab.model.checks import (
    ComponentError,
    check_decoding,
    check_guidance,
    check_items,
    check_likelihood,
    check_process,
    check_samples,
    component_errors,
    first_items,
    name_of,
)
from diffusion_lab.model.sampling import Sampling
from diffusion_lab.noise import image_generators

if TYPE_CHECKING:
    from diffusion_lab.model.base import Model
    from diffusion_lab.model.training import Training

SIGNATURE = "loss(denoiser, x0, generator=None)"
DRAW = (
    "draw noise by diffusion_lab.noise.draw(x0.shape, generator, x0.dtype, x0.device) and times by "
    "draw_each(denoiser.process.sample_times, len(x0), x0.device, generator), which accept every type of generator"
)


def rehearse(
    model: Training,
    items: Tensor,
    *,
    device: torch.device | str | None = None,
    training: bool = True,
    likelihoods: Sequence[str] = (),
    context: Callable[[], AbstractContextManager] = nullcontext,
    convert: Callable[[Any], Any] = lambda model: model,
) -> list[str]:
    """Try a model on two items (2, ...) of its data, as data modules emit them; return warnings.

    Args:
        device: device of the trial; None: the model's.
        training: also try the loss, its gradient and the optimiser.
        likelihoods: names of the model's likelihoods to try.
        context, convert: of the precision plugin: the context of the forward pass, and the conversion of the model.

    Raises:
        ValueError: for a component that fails, in one line with its name and what is expected.
    """
    if not isinstance(model.network, nn.Module):
        raise ComponentError(
            f"the network {name_of(model.network)} must be a torch.nn.Module: derive its class from it"
        )
    device = torch.device(device or model.device)
    with random_state_kept(device), copied(model, device) as tried, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = convert(tried)
        items = items.to(device)
        x0 = check_items(tried, items)
        check_process(tried)
        with CheckedNetwork(tried.denoiser) as network:
            messages = check_network(tried.denoiser, network, x0)
            if training:
                check_loss(tried, x0, context)
            tried.eval()
            if isinstance(tried, Sampling):
                check_sampling(tried, network, items, x0, likelihoods)
    return messages


def check_sampling(
    model: Model, network: CheckedNetwork, items: Tensor, x0: Tensor, likelihoods: Sequence[str]
) -> None:
    """Check guidance, the sampler, decoding and likelihoods on two items (2, ...), and x0 in the model's range."""
    check_guidance(model)
    network.limit = 2
    check_decoding(model, items, x0, check_samples(model, network))
    for name in likelihoods:
        check_likelihood(model, name, network, x0)


def rehearse_fit(model: Training) -> list[str]:
    """Rehearse with the data of the model's `pl.Trainer` before training; return warnings.

    A sharded network is not tried, as no rank could run its copy alone.
    """
    trainer, device = model.trainer, model.device
    if model.device_mesh is not None:
        return []
    with random_state_kept(device):
        items = first_items(trainer, model)
    return rehearse(model, items, context=trainer.precision_plugin.forward_context)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Context that restores the state of every global random generator."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def copied(model: Training, device: torch.device) -> Iterator[Training]:
    """Context with an uncompiled copy of the model on a device.

    A model that cannot be copied is used itself; its buffers, gradients and modes are restored afterwards.
    """
    with torch.compiler.set_stance("force_eager"):
        try:
            tried = copy.deepcopy(model).to(device)
        except Exception:  # copying may fail in any way
            with kept(model):
                yield model
        else:
            tried.zero_grad()
            yield tried


@contextmanager
def kept(model: Training) -> Iterator[None]:
    """Context that restores the state of a model that a training step changes, except the parameters."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients, nfe = [(p, p.grad) for p in model.parameters()], model.denoiser.nfe
    model.zero_grad()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        model.denoiser.nfe = nfe


def check_loss(model: Training, x0: Tensor, context: Callable[[], AbstractContextManager]) -> None:
    """Check the loss as in training, with its gradient, and as in validation, with one generator per item."""
    name, device = name_of(model.loss), x0.device
    denoiser = model.conditional_denoiser(torch.zeros(len(x0), dtype=torch.int64))
    with component_errors("the optimizer"):
        model.configure_optimizers()
    model.train()
    with context():
        try:
            inspect.signature(model.loss).bind(denoiser, x0)
        except TypeError as error:
            raise ComponentError(f"the loss {name} must be called as {SIGNATURE}: {error}") from error
        with component_errors(f"the loss {name}"):
            losses = model.loss(denoiser, x0)
        check_losses(name, losses, len(x0))
        scaled = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    if not losses.requires_grad:
        raise ComponentError(
            f"the loss {name} has no gradient: it is detached, or all of {name_of(model.network)} is frozen"
        )
    with component_errors(f"the backward pass of the loss {name} through {name_of(model.network)}"):
        losses.mean().backward()
    gradients = {n: p.grad for n, p in model.network.named_parameters() if p.grad is not None}
    if not gradients:
        raise ComponentError(f"the loss {name} gives no parameter of {name_of(model.network)} a gradient")
    bad = [n for n, gradient in gradients.items() if not gradient.isfinite().all()]
    if bad and not scaled:  # 16-mixed: the gradient scaler handles an overflow
        raise ComponentError(f"the gradient of the loss {name} is not finite, first for network.{bad[0]}")
    model.eval()
    one, each = torch.Generator(device).manual_seed(0), image_generators(0, range(len(x0)), device)
    for generator, form in ((one, "a torch.Generator"), (each, "a list with one per item, as in validation")):
        with torch.no_grad(), component_errors(f"the loss {name} fails where generator is {form}", DRAW):
            losses = model.loss(denoiser, x0, generator)
        check_losses(name, losses, len(x0))


def check_losses(name: str, losses: Any, batch: int) -> None:
    """Check that the losses are one finite number per item."""
    if not isinstance(losses, Tensor) or losses.shape != (batch,) or not losses.is_floating_point():
        got = f"{losses.dtype} of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ComponentError(
            f"the loss {name} returns {got}, expected the loss of each item, real numbers of shape (B,)"
        )
    if not losses.isfinite().all():
        raise ComponentError(
            f"the loss {name} is not finite for training data and an initialised network: {losses.tolist()}"
        )
