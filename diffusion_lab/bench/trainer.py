"""What a step of training costs beside its arithmetic: ours, Lightning's, and none of either."""

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

from diffusion_lab.bench.race import Race, Setting
from diffusion_lab.config.compose import training
from diffusion_lab.data import DataModule
from diffusion_lab.model import Model
from diffusion_lab.run.quiet import quieten
from diffusion_lab.run.train import fit, set_up

TINY = ("data=toy2d", "network.width=16", "network.depth=1", "data.batch_size=16", "data.train_size=4096", "logger=csv")
"""A model whose arithmetic takes no longer than what surrounds it; neither pictures nor checkpoints within a turn."""


class Done(Exception):
    """The last lap is over."""


@dataclass
class Laps:
    """A loss that notes the time every `length` calls, from number `warm` on, and ends the training after `count` laps.

    Each lap has one row of the log.
    """

    loss: Callable[..., Tensor]
    warm: int
    length: int
    count: int
    calls: int = 0
    times: list[float] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Tensor:
        if self.calls == 0:
            torch.manual_seed(0)  # all train on the same noise
        if self.calls >= self.warm and (self.calls - self.warm) % self.length == 0:
            self.times.append(time.perf_counter())
            if len(self.times) > self.count:
                raise Done
        self.calls += 1
        return self.loss(*arguments)

    @property
    def seconds(self) -> float:
        """Of a lap, the median."""
        return statistics.median(end - begin for begin, end in pairwise(self.times))


@dataclass
class Training:
    """What one contestant did in each of its turns: seconds of a lap, and the weights that it came to."""

    seconds: list[float] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.empty(0))


Way = Callable[[pl.Trainer, Model, DataModule, dict[str, Any], Path], None]
"""Trains a model that `train.py` has set up, by its trainer or otherwise."""


def ours(trainer: pl.Trainer, model: Model, data: DataModule, settings: dict[str, Any], folder: Path) -> None:
    """As `train.py` does."""
    fit(trainer, model, data, settings, folder, None, 0)


def lightning(
    trainer: pl.Trainer,
    model: Model,
    data: DataModule,
    settings: dict[str, Any],
    folder: Path,
    callbacks: Sequence[Callable[[], pl.Callback]] = (),
    **furnished: Any,
) -> None:
    """By a Trainer with the same settings and what it is furnished with; by default with nothing."""
    keys = {
        key: value
        for key, value in settings["trainer"].items()
        if key not in ("_target_", "timeout", "max_restarts", "rdzv_endpoint")
    }
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made = [make() for make in callbacks]
    trainer = pl.Trainer(**{**keys, **bare, **furnished}, callbacks=made, default_root_dir=str(folder))
    trainer.fit(model, datamodule=data)


class LogsLoss(pl.Callback):
    """What a Lightning user's training step does: `self.log`."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.log("train/loss", outputs["loss"], prog_bar=True)


FURNISHED = {"logger": True, "enable_checkpointing": True, "enable_progress_bar": True}


def average() -> pl.Callback:
    """Lightning's average of the weights, by the decay that the published runs have."""
    return pl.callbacks.EMAWeightAveraging(decay=0.9999)


def raw(trainer: pl.Trainer, model: Model, data: DataModule, settings: dict[str, Any], folder: Path) -> None:
    """A loop of the same arithmetic and nothing else."""
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for number, (x, _) in enumerate(data.train_dataloader()):
        loss = model.training_step((x.to(model.device), None), number)
        optimizer.zero_grad()
        loss.backward()
        model.configure_gradient_clipping(optimizer, settings["trainer"]["gradient_clip_val"])
        optimizer.step()
        schedule.step()


def turn(way: Way, settings: dict[str, Any], laps: Callable[[Any], Laps], so_far: Training) -> Training:
    """Set up and train anew."""
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
    """Those that a turn has measured itself."""
    training = work()
    return training.seconds[-1], training


def difference(trained: Mapping[str, Training], steps: int) -> str:
    """What ours takes longer than the bare Trainer, and whether all have come to the same weights."""
    of = {name: one.seconds[1:] or one.seconds for name, one in trained.items()}  # without the warm-up
    first, second = list(of)[:2]
    more = [1e6 * (a - b) / steps for a, b in zip(of[first], of[second], strict=True)]
    message = f"{first} less {second}: {statistics.median(more):.0f} us a step ({min(more):.0f} to {max(more):.0f})"
    reference = trained[first].weights
    other = [name for name, one in trained.items() if not torch.equal(one.weights, reference)]
    return f"{message}; {f'other weights: {other}' if other else 'all come to the same weights, bit for bit'}"


def races(setting: Setting) -> Iterator[Race]:
    """A tiny model, trained by all that `train.py` puts around it, by a bare Trainer, a furnished one, and a loop."""
    quieten()
    warm, steps, count = (2, 2, 3) if setting.small else (50, 50, 12)
    where = tempfile.TemporaryDirectory()
    settings = training([*TINY, f"paths.log_dir={where.name}", f"paths.run_dir={where.name}"])
    settings["trainer"]["accelerator"] = "gpu" if setting.device.type == "cuda" else "cpu"
    ways: dict[str, Way] = {
        "ours: all that train.py puts around it": ours,
        "bare Lightning, the same model": lightning,
        "Lightning: bar, CSV log, checkpoint": partial(lightning, callbacks=[LogsLoss], **FURNISHED),
        "the same with Lightning's EMA": partial(lightning, callbacks=[LogsLoss, average], **FURNISHED),
        "a raw loop": raw,
    }

    def contestant(way: Way) -> Callable[[], Training]:
        return partial(turn, way, settings, partial(Laps, warm=warm, length=steps, count=count), Training())

    with where:
        yield Race(
            f"training a network of points, {TINY[1]}, batch 16: a step",
            {name: partial(contestant, way) for name, way in ways.items()},
            unit="us a step",
            per=steps,
            meter=seconds,
            note=lambda trained: difference(trained, steps),
        )
