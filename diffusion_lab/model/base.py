"""The LightningModule that every method is: a denoiser, a loss, a sampler, an optimiser, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import image_generators
from diffusion_lab.sampler import Sampler, State

Loss = Callable[..., Tensor]
"""(denoiser, x0, generator) -> the loss of each data point, (B,)."""

Likelihood = Callable[..., Any]
"""(denoiser, x0, grey_levels, generator) -> something with a `log_likelihood` and its `terms`, in nats."""


class Model(pl.LightningModule):
    """Wires a denoiser, its training loss and a default sampler and likelihood.

    Args:
        denoiser: network, process and parameterization.
        loss: training loss.
        sampler: sampler used when `sample` is given none.
        likelihood: what evaluates log p of data, by name ("bound", "flow"); None evaluates none.
        optimizer: parameters -> optimiser; None for a model that is only sampled from.
        shape: of one data point, (C, H, W) or (2,).
        grey_levels: number of values an image's pixel can have; None for points.
        dequantize: train on images blurred evenly within their grey levels, (k + u) / grey_levels (NCSN).
        warmup_steps: the learning rate grows as min(step / warmup_steps, 1), the first update at rate 0, as published.
        decay_steps: it then follows a cosine to 0 at this step; None keeps it.
        channels_last: lay the network's weights out for the faster convolutions.

    `config` is the composed configuration as plain containers; it goes into every checkpoint, which then needs
    nothing else.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        sampler: Sampler,
        likelihood: Mapping[str, Likelihood] | None,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        shape: Sequence[int],
        grey_levels: int | None = None,
        dequantize: bool = False,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.denoiser, self.loss, self.sampler = denoiser, loss, sampler
        if callable(likelihood):  # one alone, as the first checkpoints have it
            likelihood = {likelihood.name: likelihood}
        # A recipe may hold a setting for a likelihood that was not chosen: such a node is no object.
        self.likelihood = {name: one for name, one in (likelihood or {}).items() if callable(one)}
        self.optimizer, self.warmup_steps, self.decay_steps = optimizer, warmup_steps, decay_steps
        self.shape, self.grey_levels, self.dequantize = tuple(shape), grey_levels, dequantize
        self.grad_norm: Tensor | None = None
        self.config: dict[str, Any] | None = None
        if channels_last and len(self.shape) == 3 and isinstance(denoiser.network, torch.nn.Module):
            denoiser.network.to(memory_format=torch.channels_last)

    @property
    def network(self) -> torch.nn.Module:
        """The network, whose parameters are all that is trained and averaged."""
        return self.denoiser.network

    def encode(self, data: Tensor) -> Tensor:
        """Images from [0, 1] to the model's range; points as they are."""
        row = self.denoiser.parameterization
        return row.low + (row.high - row.low) * data if len(self.shape) == 3 else data

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`, float32; images clipped to [0, 1] and rounded to the grey levels that data have."""
        row = self.denoiser.parameterization
        if len(self.shape) == 1:
            return x.float()
        images, top = ((x.float() - row.low) / (row.high - row.low)).clamp(0, 1), self.grey_levels - 1
        if self.dequantize:  # the level whose bin the model was taught
            return (images * self.grey_levels).floor().clamp(max=top) / top
        return (images * top).round() / top

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        data = batch[0].float()  # precision bf16-true hands over bfloat16, which only the network is meant for
        if self.dequantize and self.grey_levels is not None:
            data = (data * (self.grey_levels - 1) + torch.rand_like(data)) / self.grey_levels
        return self.loss(self.denoiser, self.encode(data)).mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The training loss on held-out data, with the same times and noise in every validation."""
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        loss = self.loss(self.denoiser, self.encode(batch[0].float()), generator).mean()
        # "step" is Lightning's word for the row: without it the value lands one row too early.
        self.log_dict({"val/loss": loss, "step": float(self.global_step)}, batch_size=len(batch[0]), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Final numbers come from the Evaluation callback, not from batches."""

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self.network.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by at an optimiser step, 0, 1, ..."""
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
        """Clip by the global norm, and keep the norm for the log."""
        bound = float("inf") if gradient_clip_val is None else gradient_clip_val
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), bound)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 500,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Images first, ..., first + count - 1 of the series `seed`, in [0, 1], (count, C, H, W); points (count, 2).

        Image i is driven by noise that depends on (seed, i) alone, so it is the same whatever the batch size (bit-equal
        when the batches have equal shape).
        """
        batches = self.sample_batches(count, seed=seed, first=first, batch_size=batch_size, sampler=sampler)
        return torch.cat([images for images in batches])

    def sample_batches(
        self, count: int, *, seed: int, first: int, batch_size: int, sampler: Sampler | None = None
    ) -> Iterator[Tensor]:
        """What `sample` joins, a batch at a time, on the CPU."""
        sampler, end = sampler or self.sampler, first + count
        with self.evaluating():
            for start in range(first, end, batch_size):
                indices = range(start, min(start + batch_size, end))
                generators = image_generators(seed, indices, self.device)
                x = sampler(self.denoiser, (len(indices), *self.shape), generators, self.device)
                yield self.decode(x).cpu()

    @torch.no_grad()
    def trajectory(
        self, count: int, *, seed: int = 0, first: int = 0, sampler: Sampler | None = None
    ) -> Iterator[State]:
        """States of the sampling of images first, ..., first + count - 1 of the series `seed`, in the model's range."""
        sampler = sampler or self.sampler
        generators = image_generators(seed, range(first, first + count), self.device)
        with self.evaluating():
            x = sampler.prior(self.denoiser, (count, *self.shape), generators, self.device)
            yield from sampler.trajectory(self.denoiser, x, generators)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which dropout is off; the mode of before comes back."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)
