"""Overhead of a training step: ours, Lightning's, and that of a raw loop."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion_lab.bench.benchmark import Benchmark, Setting
from diffusion_lab.config.compose import training
from diffusion_lab.data import DataModule
from diffusion_lab.model import Model
from diffusion_lab.run.lightning import quieten
from diffusion_lab.run.train import fit, set_up

TINY = ("data=toy2d", "network.width=16", "network.depth=1", "data.batch_size=16", "data.train_size=4096", "logger=csv")
"""A model so small that the overhead dominates; no images or checkpoints during the measurement."""


class Done(Exception):
    """The last interval is over."""


@dataclass
class Laps:
    """A loss that records the time every `length` calls after `warm` calls, and raises Done after `count` intervals.

    One row is logged per interval.
    """

    loss: Callable[..., Tensor]
    warm: int
    length: int
    count: int
    calls: int = 0
    times: list[float] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Tensor:
        if self.calls == 0:
            torch.manual_seed(0)  # the same noise for all
        if self.calls >= self.warm and (self.calls - self.warm) % self.length == 0:
            self.times.append(time.perf_counter())
            if len(self.times) > self.count:
                raise Done
        self.calls += 1
        return self.loss(*arguments)

    @property
    def seconds(self) -> float:
        """Median seconds per interval."""
        return statistics.median(end - begin for begin, end in pairwise(self.times))


@dataclass
class Training:
    """Results of one implementation: seconds per interval of each run, and the final weights."""

    seconds: list[float] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.empty(0))


Way = Callable[[pl.Trainer, Model, DataModule, dict[str, Any], Path], None]
"""Trains a model set up by `train.py`."""


def ours(trainer: pl.Trainer, model: Model, data: DataModule, settings: dict[str, Any], folder: Path) -> None:
    """Train like `train.py`."""
    fit(trainer, model, data, settings, folder, None, 0)


def lightning(
    trainer: pl.Trainer,
    model: Model,
    data: DataModule,
    settings: dict[str, Any],
    folder: Path,
    callbacks: Sequence[Callable[[], pl.Callback]] = (),
    **options: Any,
) -> None:
    """Train with a plain Trainer of the same settings, with the given callbacks and options."""
    keys = {
        key: value
        for key, value in settings["trainer"].items()
        if key not in ("_target_", "timeout", "max_restarts", "rdzv_endpoint")
    }
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made = [make() for make in callbacks]
    trainer = pl.Trainer(**{**keys, **bare, **options}, callbacks=made, default_root_dir=str(folder))
    trainer.fit(model, datamodule=data)


class LogsLoss(pl.Callback):
    """Logs the loss with `self.log`, as Lightning users do."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.log("train/loss", outputs["loss"], prog_bar=True)


TYPICAL = {"logger": True, "enable_checkpointing": True, "enable_progress_bar": True}


def average() -> pl.Callback:
    """Lightning's EMA with the usual decay."""
    return pl.callbacks.EMAWeightAveraging(decay=0.9999)


def raw(trainer: pl.Trainer, model: Model, data: DataModule, settings: dict[str, Any], folder: Path) -> None:
    """Train in a raw loop."""
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for number, (x, _) in enumerate(data.train_dataloader()):
        loss = model.training_step((x.to(model.device), None), number)
        optimizer.zero_grad()
        loss.backward()
        model.configure_gradient_clipping(optimizer, settings["trainer"]["gradient_clip_val"])
        optimizer.step()
        schedule.step()


def run(way: Way, settings: dict[str, Any], laps: Callable[[Any], Laps], so_far: Training) -> Training:
    """Set up and train a new model."""
    with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null), suppress(Done):
        folder = Path(settings["paths"]["run_dir"])
        torch.manual_seed(settings["seed"])
        data, model, trainer = set_up(settings, folder)
        model.to(trainer.strategy.root_device)
        model.loss = timed = laps(model.loss)
        way(trainer, model, data, settings, folder)
    so_far.seconds.append(timed.seconds)
    so_far.weights = torch.cat([p.detach().cpu().flatten() for p in model.network.parameters()])
    return so_far


def seconds(work: Callable[[], Training], device: torch.device) -> tuple[float, Training]:
    """Return the seconds measured by the run itself."""
    training = work()
    return training.seconds[-1], training


def difference(trained: Mapping[str, Training], steps: int) -> str:
    """Report the difference between ours and the plain Trainer, and whether all weights are equal."""
    of = {name: one.seconds[1:] or one.seconds for name, one in trained.items()}  # without the warm-up
    first, second = list(of)[:2]
    overhead = [1e6 * (a - b) / steps for a, b in zip(of[first], of[second], strict=True)]
    spread = f"{statistics.median(overhead):.0f} us a step ({min(overhead):.0f} to {max(overhead):.0f})"
    message = f"{first} less {second}: {spread}"
    reference = trained[first].weights
    other = [name for name, one in trained.items() if not torch.equal(one.weights, reference)]
    return f"{message}; {f'other weights: {other}' if other else 'all weights are equal, bit for bit'}"


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """A tiny model trained by `train.py`, by a bare and a typical Trainer, and by a raw loop."""
    quieten()
    warm, steps, count = (2, 2, 3) if setting.small else (50, 50, 12)
    where = tempfile.TemporaryDirectory()
    settings = training([*TINY, f"paths.log_dir={where.name}", f"paths.run_dir={where.name}"])
    settings["trainer"]["accelerator"] = "gpu" if setting.device.type == "cuda" else "cpu"
    ways: dict[str, Way] = {
        "ours: train.py": ours,
        "bare Lightning, the same model": lightning,
        "Lightning: bar, CSV log, checkpoint": partial(lightning, callbacks=[LogsLoss], **TYPICAL),
        "the same with Lightning's EMA": partial(lightning, callbacks=[LogsLoss, average], **TYPICAL),
        "a raw loop": raw,
    }

    def implementation(way: Way) -> Callable[[], Training]:
        return partial(run, way, settings, partial(Laps, warm=warm, length=steps, count=count), Training())

    with where:
        yield Benchmark(
            f"training a network of points, {TINY[1]}, batch 16: a step",
            {name: partial(implementation, way) for name, way in ways.items()},
            unit="us a step",
            per=steps,
            meter=seconds,
            note=lambda trained: difference(trained, steps),
        )
