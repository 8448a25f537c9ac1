"""What data, noise process, sampler and likelihood promise a model, each compared with what they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from diffusion_lab.noise import image_generators
from diffusion_lab.process import NoiseProcess

if TYPE_CHECKING:
    from diffusion_lab.model.base import Model
    from diffusion_lab.model.trial_network import TrialNetwork


class Unfit(ValueError):
    """A part that does not give what it must; one line for the user."""


def title(part: Any) -> str:
    """The name of a part's class, or of a function."""
    return getattr(part, "__name__", None) or type(part).__name__


def one_line(error: Exception) -> str:
    """An error in one line."""
    message, name = " ".join(str(error).split())[:400], type(error).__name__
    # A ValueError is worded for the user; the others need their class, as in "KeyError: 'x'".
    return message if message and isinstance(error, ValueError) else f"{name}{': ' * bool(message)}{message}"


@contextmanager
def blamed(part: str, advice: str = "") -> Iterator[None]:
    """Context in which an error is told as that of a part."""
    try:
        yield
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(f"{part}: {one_line(error)}{'; ' * bool(advice)}{advice}") from error


def first_items(trainer: pl.Trainer, model: Model) -> Tensor:
    """Two items of what a trainer trains on, as a training step gets them; random ones where data are a stream."""
    if hasattr(trainer.datamodule, "images"):
        return trainer.datamodule.images("train", 2)
    loader = trainer.fit_loop._data_source.dataloader()
    data = getattr(loader, "dataset", None)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not len(data):
        return torch.rand(2, *model.shape)
    with blamed(f"the data set {title(data)}"):
        items = [0, min(1, len(data) - 1)]
        if loader.batch_sampler is None:  # its items are batches
            chosen = data[0]
        else:
            chosen = data.__getitems__(items) if hasattr(data, "__getitems__") else [data[i] for i in items]
        batch = loader.collate_fn(chosen)
        batch = model._apply_batch_transfer_handler(trainer.strategy.batch_to_device(batch), device=model.device)
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise Unfit(f"the data give batches of {type(batch).__name__}: tuples (x, label) or (x,) of tensors needed")
    return batch[0][:2]


def check_items(model: Model, items: Tensor) -> Tensor:
    """The items in the model's range, once they are found to have its shape and, as images, to lie in [0, 1]."""
    if tuple(items.shape[1:]) != model.shape:
        raise Unfit(f"the data give items of shape {tuple(items.shape[1:])}, and the model is of shape {model.shape}")
    items = model.in_full(items.repeat(2, *(1,) * len(model.shape))[:2])
    if not items.isfinite().all():
        raise Unfit("the data hold NaN or infinity")
    low, high = items.min().item(), items.max().item()
    if model.grey_levels is not None and not 0 <= low <= high <= 1:
        raise Unfit(
            f"the data give values from {low:.4g} to {high:.4g}, and images of {model.grey_levels} grey levels must be "
            "in [0, 1]: scale them, or set grey_levels=None for real numbers that are no grey levels"
        )
    with blamed(f"{title(model)}.encode"):
        x0 = model.encode(items)
    if x0.shape != items.shape or not x0.isfinite().all():
        raise Unfit(f"{title(model)}.encode gives {tuple(x0.shape)} of {tuple(items.shape)}, or numbers not finite")
    return x0


def check_process(model: Model) -> None:
    """alpha, sigma > 0 at the times of training and sampling, and less signal the later it is."""
    process, name = model.denoiser.process, f"the process {title(model.denoiser.process)}"
    with blamed(name):
        t = process.sample_times(2, torch.device("cpu"))
    if t.shape != (2,) or not ((t >= 0) & (t <= 1)).all():
        raise Unfit(f"{name}: sample_times(2) gives {t.tolist()}, two times in [0, 1] needed")
    ends = torch.tensor([process.t_train_min, 1.0], dtype=torch.float64)
    check_scales(process, name, t)
    check_scales(process, name, ends)
    if (process.log_snr(ends).diff() > 0).any():
        raise Unfit(f"{name}: alpha/sigma grows with t, and t = 0 must be the data, t = 1 the noise")
    if hasattr(model.sampler, "check"):
        with blamed(f"the sampler {title(model.sampler)}"):
            times = model.sampler.check(model.denoiser)
        check_scales(process, name, times)


def check_scales(process: NoiseProcess, name: str, times: Tensor) -> None:
    """alpha and sigma are positive numbers at `times`, and of their shape."""
    with blamed(name):
        pair = process.alpha_sigma(times)
    for word, value in zip(("alpha", "sigma"), pair, strict=True):
        if value.shape != times.shape:
            raise Unfit(f"{name}: {word}(t) gives shape {tuple(value.shape)} for t {tuple(times.shape)}")
        bad = ~(value.isfinite() & (value > 0))
        if bad.any():
            raise Unfit(
                f"{name}: {word}({times[bad][0]:.4g}) = {value[bad][0]:.4g}, a positive number needed; t_min and "
                "t_train_min are the least times at which a sampler and a training ask"
            )


@torch.no_grad()
def check_samples(model: Model, network: TrialNetwork) -> Tensor | None:
    """What the sampler makes of two images' noise (2, ...); None if it failed without the real network."""
    sampler, shape, name, device = model.sampler, (2, *model.shape), title(model.sampler), model.device
    network.calls = 0
    try:
        with blamed(f"the sampler {name}"):
            x = model.drawing(sampler, 2)(image_generators(0, range(2), device))
    except Unfit:
        if network.over:
            return None
        raise
    if not isinstance(x, Tensor) or tuple(x.shape) != shape or not x.is_floating_point():
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise Unfit(f"the sampler {name} gives {got}, real numbers of shape {shape} needed")
    if not network.over and not x.isfinite().all():
        raise Unfit(f"the sampler {name} gives NaN or infinity")
    return x


@torch.no_grad()
def check_decoding(model: Model, items: Tensor, x0: Tensor, x: Tensor | None) -> None:
    """Samples are decoded to the data's shape and range, and encoded data to themselves."""
    name = f"{title(model)}.decode"
    with blamed(name):
        back, decoded = model.decode(x0), model.decode(x0 if x is None else x.nan_to_num())
    if decoded.shape != (2, *model.shape):
        raise Unfit(f"{name} gives {tuple(decoded.shape)}, {(2, *model.shape)} needed")
    if model.grey_levels is not None and not ((decoded >= 0) & (decoded <= 1)).all():
        raise Unfit(f"{name} gives values from {decoded.min():.4g} to {decoded.max():.4g}, [0, 1] needed")
    step = 0 if model.grey_levels is None else 1 / (model.grey_levels - 1)
    error = (back - items).abs().max().item()
    if error > 1.01 * step + 1e-4 * max(1.0, items.abs().max().item()):
        raise Unfit(f"{name} is not the inverse of encode: data come back changed by {error:.4g}")


def check_likelihood(model: Model, name: str, network: TrialNetwork, x0: Tensor) -> None:
    """A likelihood of two items: one number for each, and for each of its terms."""
    likelihood, network.calls = model.likelihood[name], 0
    generators = image_generators(0, range(len(x0)), x0.device)
    try:
        with blamed(f"likelihood={name} ({title(likelihood)})"):
            result = likelihood(model.denoiser, x0, model.grey_levels, generators)
            given = {"log_likelihood": result.log_likelihood, **result.terms}
    except Unfit:
        if network.over:
            return
        raise
    for word, value in given.items():
        if value.shape != (len(x0),):
            raise Unfit(f"likelihood={name} ({title(likelihood)}) gives {word} {tuple(value.shape)}, (B,) needed")
        if not network.over and not value.isfinite().all():
            raise Unfit(f"likelihood={name} ({title(likelihood)}) gives {word} {value.tolist()}, finite numbers needed")
