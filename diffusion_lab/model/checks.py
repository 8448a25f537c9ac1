"""Checks that data, noise process, sampler and likelihood satisfy what a model requires of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor
from torch.utils.data import IterableDataset

from diffusion_lab.noise import image_generators
from diffusion_lab.process import NoiseProcess

if TYPE_CHECKING:
    from diffusion_lab.model.base import Model
    from diffusion_lab.model.checked_network import CheckedNetwork


class ComponentError(ValueError):
    """A component that does not satisfy its requirements; the message is one line for the user."""


def name_of(component: Any) -> str:
    """The name of a function, or of an object's class."""
    return getattr(component, "__name__", None) or type(component).__name__


def one_line(error: Exception) -> str:
    """The message of an error in one line."""
    message, name = " ".join(str(error).split())[:400], type(error).__name__
    # The message of a ValueError is written for the user; others need their class, as in "KeyError: 'x'".
    return message if message and isinstance(error, ValueError) else f"{name}{': ' * bool(message)}{message}"


@contextmanager
def component_errors(component: str, advice: str = "") -> Iterator[None]:
    """Context that raises any error as a `ComponentError` of this component."""
    try:
        yield
    except ComponentError:
        raise
    except Exception as error:
        raise ComponentError(f"{component}: {one_line(error)}{'; ' * bool(advice)}{advice}") from error


def check_end(trainer: pl.Trainer) -> None:
    """Raise ComponentError if only a number of epochs would end a training on data of ours, whose epoch has no end."""
    endless = hasattr(trainer.datamodule, "batches") and isinstance(trainer.limit_train_batches, float)
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)
    if endless and not timed and trainer.max_steps == -1 and trainer.max_epochs != -1:
        raise ComponentError(
            f"Trainer(max_epochs={trainer.max_epochs}) would never end: a training is measured in steps: "
            "give max_steps=..."
        )


def first_items(trainer: pl.Trainer, model: Model) -> Tensor:
    """Two items of the training data, as a training step gets them; random ones for an iterable data set."""
    if hasattr(trainer.datamodule, "images"):
        return trainer.datamodule.images("train", 2)
    loader = trainer.fit_loop._data_source.dataloader()
    data = getattr(loader, "dataset", None)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not len(data):
        return torch.rand(2, *model.shape)
    with component_errors(f"the data set {name_of(data)}"):
        items = [0, min(1, len(data) - 1)]
        if loader.batch_sampler is None:  # the items of the data set are batches
            chosen = data[0]
        else:
            chosen = data.__getitems__(items) if hasattr(data, "__getitems__") else [data[i] for i in items]
        batch = loader.collate_fn(chosen)
        batch = model._apply_batch_transfer_handler(trainer.strategy.batch_to_device(batch), device=model.device)
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise ComponentError(
            f"the data return batches of type {type(batch).__name__}, expected tuples (x, label) or (x,) of tensors"
        )
    return batch[0][:2]


def check_items(model: Model, items: Tensor) -> Tensor:
    """Return the items in the model's range, after checking their shape and that images are in [0, 1]."""
    if tuple(items.shape[1:]) != model.shape:
        raise ComponentError(f"the data have shape {tuple(items.shape[1:])}, but the model has shape {model.shape}")
    items = model.full_precision(items.repeat(2, *(1,) * len(model.shape))[:2])
    if not items.isfinite().all():
        raise ComponentError("the data contain NaN or infinity")
    low, high = items.min().item(), items.max().item()
    if model.grey_levels is not None and not 0 <= low <= high <= 1:
        raise ComponentError(
            f"the data have values from {low:.4g} to {high:.4g}, but images of {model.grey_levels} grey levels must be "
            "in [0, 1]: rescale them, or set grey_levels=None for real numbers"
        )
    with component_errors(f"{name_of(model)}.encode"):
        x0 = model.encode(items)
    if x0.shape != items.shape or not x0.isfinite().all():
        raise ComponentError(
            f"{name_of(model)}.encode must keep the shape {tuple(items.shape)} and return finite numbers"
        )
    return x0


def check_process(model: Model) -> None:
    """Check that alpha, sigma > 0 at training and sampling times, and that alpha/sigma decreases with t."""
    process, name = model.denoiser.process, f"the process {name_of(model.denoiser.process)}"
    with component_errors(name):
        t = process.sample_times(2, torch.device("cpu"))
    if t.shape != (2,) or not ((t >= 0) & (t <= 1)).all():
        raise ComponentError(f"{name}: sample_times(2) returns {t.tolist()}, expected two times in [0, 1]")
    ends = torch.tensor([process.t_train_min, 1.0], dtype=torch.float64)
    check_scales(process, name, t)
    check_scales(process, name, ends)
    if (process.log_snr(ends).diff() > 0).any():
        raise ComponentError(f"{name}: alpha/sigma increases with t, but t = 0 must be data and t = 1 noise")
    if hasattr(getattr(model, "sampler", None), "check"):
        with component_errors(f"the sampler {name_of(model.sampler)}"):
            times = model.sampler.check(model.denoiser)
        check_scales(process, name, times)


def check_scales(process: NoiseProcess, name: str, times: Tensor) -> None:
    """Check that alpha and sigma are positive at `times` and have their shape."""
    with component_errors(name):
        pair = process.alpha_sigma(times)
    for symbol, value in zip(("alpha", "sigma"), pair, strict=True):
        if value.shape != times.shape:
            raise ComponentError(f"{name}: {symbol}(t) has shape {tuple(value.shape)} for t {tuple(times.shape)}")
        bad = ~(value.isfinite() & (value > 0))
        if bad.any():
            raise ComponentError(
                f"{name}: {symbol}({times[bad][0]:.4g}) = {value[bad][0]:.4g}, expected a positive number; t_min and "
                "t_train_min are the smallest times of sampling and training"
            )


@torch.no_grad()
def check_samples(model: Model, network: CheckedNetwork) -> Tensor | None:
    """Check the sampler and return two samples (2, ...); None if it failed after the network was replaced by zeros."""
    sampler, shape, name, device = model.sampler, (2, *model.shape), name_of(model.sampler), model.device
    network.calls = 0
    try:
        with component_errors(f"the sampler {name}"):
            x = model.prepare_sampling(sampler, 2)(image_generators(0, range(2), device))
    except ComponentError:
        if network.limit_reached:
            return None
        raise
    if not isinstance(x, Tensor) or tuple(x.shape) != shape or not x.is_floating_point():
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ComponentError(f"the sampler {name} returns {got}, expected real numbers of shape {shape}")
    if not network.limit_reached and not x.isfinite().all():
        raise ComponentError(f"the sampler {name} returns NaN or infinity")
    return x


@torch.no_grad()
def check_guidance(model: Model) -> None:
    """Check that guidance applies to two samples, and evaluate its weaker denoiser, if it has one."""
    if model.guidance is None:
        return
    x = torch.randn(2, *model.shape, device=model.device)
    with component_errors(f"the guidance {name_of(model.guidance)}"):
        guided = model.sampling_denoiser(model.labels_of(range(2), 0), images=range(2))
        eps = getattr(guided, "weak", guided)(x, torch.ones(2, device=model.device)).eps
        if guided.mean_gradient is not None:
            guided.mean_gradient(x, 1.0)
        if eps.shape != x.shape:
            raise ValueError(f"it returns shape {tuple(eps.shape)}, expected {tuple(x.shape)}")


@torch.no_grad()
def check_decoding(model: Model, items: Tensor, x0: Tensor, x: Tensor | None) -> None:
    """Check that samples are decoded to the shape and range of the data, and that `decode` inverts `encode`."""
    name = f"{name_of(model)}.decode"
    with component_errors(name):
        back, decoded = model.decode(x0), model.decode(x0 if x is None else x.nan_to_num())
    if decoded.shape != (2, *model.shape):
        raise ComponentError(f"{name} returns shape {tuple(decoded.shape)}, expected {(2, *model.shape)}")
    if model.grey_levels is not None and not ((decoded >= 0) & (decoded <= 1)).all():
        raise ComponentError(f"{name} returns values from {decoded.min():.4g} to {decoded.max():.4g}, expected [0, 1]")
    step = 0 if model.grey_levels is None else 1 / (model.grey_levels - 1)
    error = (back - items).abs().max().item()
    if error > 1.01 * step + 1e-4 * max(1.0, items.abs().max().item()):
        raise ComponentError(f"{name} is not the inverse of encode: it changes the data by {error:.4g}")


def check_likelihood(model: Model, name: str, network: CheckedNetwork, x0: Tensor) -> None:
    """Check that a likelihood and each of its terms return one finite number per item."""
    likelihood, network.calls = model.likelihood[name], 0
    generators = image_generators(0, range(len(x0)), x0.device)
    try:
        with component_errors(f"likelihood={name} ({name_of(likelihood)})"):
            result = likelihood(model.denoiser, x0, model.grey_levels, generators)
            values = {"log_likelihood": result.log_likelihood, **result.terms}
    except ComponentError:
        if network.limit_reached:
            return
        raise
    where = f"likelihood={name} ({name_of(likelihood)})"
    for term, value in values.items():
        if value.shape != (len(x0),):
            raise ComponentError(f"{where} returns {term} of shape {tuple(value.shape)}, expected (B,)")
        if not network.limit_reached and not value.isfinite().all():
            raise ComponentError(f"{where} returns {term} = {value.tolist()}, expected finite numbers")
