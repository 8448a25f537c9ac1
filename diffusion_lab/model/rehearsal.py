"""The rehearsal: before the first step, two items go through all that a run will do with a model, on a copy of it.

Encoding, the loss with every kind of generator, the backward pass, the sampler, decoding and, where they are asked for,
likelihoods: what does not give what it must is told in one line.  Nothing that a training reads is changed by it.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab.model.expectations import (
    Unfit,
    blamed,
    check_decoding,
    check_items,
    check_likelihood,
    check_process,
    check_samples,
    first_items,
    title,
)
from diffusion_lab.model.trial_network import TrialNetwork, check_network
from diffusion_lab.noise import image_generators

if TYPE_CHECKING:
    from diffusion_lab.model.base import Model

DRAW = (
    "draw noise by diffusion_lab.noise.draw(x0.shape, generator, x0.dtype, x0.device) and times by "
    "draw_each(denoiser.process.sample_times, len(x0), x0.device, generator), which take every kind of generator"
)


def rehearse(
    model: Model,
    items: Tensor,
    *,
    device: torch.device | str | None = None,
    training: bool = True,
    likelihoods: Sequence[str] = (),
    context: Callable[[], AbstractContextManager] = nullcontext,
    convert: Callable[[Any], Any] = lambda model: model,
) -> list[str]:
    """Try a model on two items (2, ...) of its data, as data modules emit them; remarks that are no reason to refuse.

    Args:
        device: where; None takes the model's.
        training: try the loss, its gradient and the optimiser too.
        likelihoods: names of the model's likelihoods to try.
        context, convert: of the precision of the run: what training runs within, and what it makes of a model.

    Raises:
        ValueError: in one line that names what is wrong and what is needed.
    """
    if not isinstance(model.network, nn.Module):
        raise Unfit(f"the network {title(model.network)} is no torch.nn.Module: derive its class from that")
    device = torch.device(device or model.device)
    with random_state_kept(device), copied(model, device) as tried, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = convert(tried)
        items = items.to(device)
        x0 = check_items(tried, items)
        check_process(tried)
        with TrialNetwork(tried.denoiser) as network:
            notes = check_network(tried.denoiser, network, x0)
            if training:
                check_loss(tried, x0, context)
            tried.eval()
            network.limit = 2
            x = check_samples(tried, network)
            check_decoding(tried, items, x0, x)
            for name in likelihoods:
                check_likelihood(tried, name, network, x0)
    return notes


def rehearse_fit(model: Model) -> list[str]:
    """Rehearse with the data of the `pl.Trainer` that is about to train the model.

    A network that is dealt to several ranks is not tried: no rank could run its copy alone.
    """
    trainer, device = model.trainer, model.device
    if model.device_mesh is not None:
        return []
    with random_state_kept(device):
        items = first_items(trainer, model)
    return rehearse(model, items, context=trainer.precision_plugin.forward_context)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Context after which every global random generator goes on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def copied(model: Model, device: torch.device) -> Iterator[Model]:
    """A copy of the model on a device, never compiled; where it holds what cannot be copied, the model itself as it is,
    whose buffers, gradients and modes come back afterwards.
    """
    with torch.compiler.set_stance("force_eager"):
        try:
            tried = copy.deepcopy(model).to(device)
        except Exception:  # any class may refuse to be copied, in any way
            with kept(model):
                yield model
        else:
            tried.zero_grad()
            yield tried


@contextmanager
def kept(model: Model) -> Iterator[None]:
    """Context after which the state of a model that a training step changes is what it was before."""
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


def check_loss(model: Model, x0: Tensor, context: Callable[[], AbstractContextManager]) -> None:
    """The loss as in training, with its gradient; then as in validation, with a generator for each item."""
    name, device = title(model.loss), x0.device
    with blamed("the optimizer"):
        model.configure_optimizers()
    model.train()
    with context():
        with blamed(f"the loss {name}"):
            losses = model.loss(model.denoiser, x0)
        check_losses(name, losses, len(x0))
        half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    if not losses.requires_grad:
        raise Unfit(f"the loss {name} has no gradient: it is detached, or nothing in {title(model.network)} is trained")
    with blamed(f"the backward pass of the loss {name} through {title(model.network)}"):
        losses.mean().backward()
    gradients = {n: p.grad for n, p in model.network.named_parameters() if p.grad is not None}
    if not gradients:
        raise Unfit(f"the loss {name} gives no parameter of {title(model.network)} a gradient")
    bad = [n for n, gradient in gradients.items() if not gradient.isfinite().all()]
    if bad and not half:
        raise Unfit(f"the gradient of the loss {name} is not finite, first that of network.{bad[0]}")
    model.eval()
    one, each = torch.Generator(device).manual_seed(0), image_generators(0, range(len(x0)), device)
    for generator, form in ((one, "a torch.Generator"), (each, "a list with one for each item, as in validation")):
        with torch.no_grad(), blamed(f"the loss {name} fails where generator is {form}", DRAW):
            losses = model.loss(model.denoiser, x0, generator)
        check_losses(name, losses, len(x0))


def check_losses(name: str, losses: Any, batch: int) -> None:
    """One finite number for each item."""
    if not isinstance(losses, Tensor) or losses.shape != (batch,) or not losses.is_floating_point():
        got = f"{losses.dtype} of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise Unfit(f"the loss {name} gives {got}: the loss of each item is needed, real numbers of shape (B,)")
    if not losses.isfinite().all():
        raise Unfit(f"the loss {name} is not finite for real data and a new network: {losses.tolist()}")
