"""Accuracy of a classifier at each noise level, during training and at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback.ema import EMA, averaged
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.callback.media import best_effort, log_pictures
from diffusion_lab.evaluation.accuracy import accuracy
from diffusion_lab.evaluation.results import read_results
from diffusion_lab.model import Classifier
from diffusion_lab.plot import charts
from diffusion_lab.ranges import Count, Seed, checked
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.run_directory import RESULTS


class Accuracy(OptionalHooks):
    """Measures the held-out accuracy of the EMA weights at `times` noise levels, every `every_n_steps` and at the end.

    Logs `eval/accuracy`, the mean over the noise levels, and `eval/accuracy/t=...`; writes `accuracy.png`, the accuracy
    against sigma / alpha, and at the end `results.json`.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two measurements; None: only at the end.
        times: number of noise levels, evenly spaced in the process's time.
        samples: number of held-out data points; None: all.
        batch_size: data points at once.
        seed: of the noise.
    """

    @checked
    def __init__(
        self,
        run_dir: str,
        every_n_steps: Count | None = None,
        times: Count = 11,
        samples: Count | None = None,
        batch_size: Count = 500,
        seed: Seed = 0,
    ) -> None:
        self.run_dir, self.every_n_steps, self.times = Path(run_dir), every_n_steps, times
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.facts: dict[str, Any] = {}
        self.results: dict[str, Any] | None = None
        self._measured = 0

    def check(self, data: pl.LightningDataModule, model: Classifier) -> None:
        """Raise ValueError unless the model is a classifier, and there are held-out data."""
        if not isinstance(model, Classifier):
            raise ValueError("callback.accuracy measures classifiers: leave it out, or choose model=classifier")
        if not data.size("held_out"):
            raise ValueError("callback.accuracy needs held-out data, and there are none: set callback.accuracy=null")

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.every_n_steps
        # `_measured`: with gradient accumulation, several batches end at the same step.
        if every and step % every == 0 and self._measured != step < trainer.max_steps:
            self._measured = step
            self.measure(trainer, model)

    def on_train_end(self, trainer: pl.Trainer, model: Classifier) -> None:
        record = self.measure(trainer, model)
        has_ema = any(isinstance(callback, EMA) for callback in trainer.callbacks)
        facts = {"step": trainer.global_step, "weights": "ema" if has_ema else "raw", **self.facts}
        self.results = {"run": str(self.run_dir), "checkpoint": None, **facts, "metrics": {"accuracy": record}}
        if trainer.is_global_zero:
            with best_effort(self.run_dir / RESULTS):
                write_json(self.run_dir / RESULTS, self.results)

    def is_concluded(self, step: int) -> bool:
        """Whether results.json has the results of this step."""
        return (read_results(self.run_dir / RESULTS) or {}).get("step") == step

    def measure(self, trainer: pl.Trainer, model: Classifier) -> dict[str, Any]:
        """Measure on all ranks, log, and draw."""
        times = model.denoiser.process.timesteps(min(self.times, model.denoiser.process.levels or self.times))
        with averaged(trainer, model):
            record = accuracy(model, trainer.datamodule, times, self.samples, self.batch_size, self.seed)
        if trainer.is_global_zero:
            curve, path = record["curve"], self.run_dir / "accuracy.png"
            values = {f"eval/accuracy/t={t:.3g}": rate for t, rate in zip(curve["t"], curve["accuracy"], strict=True)}
            for logger in trainer.loggers:
                logger.log_metrics({"eval/accuracy": record["value"], **values}, step=trainer.global_step)
            with best_effort(path):
                title = f"held-out accuracy at step {trainer.global_step:,}"
                charts.accuracy_plot(curve["sigma_over_alpha"], curve["accuracy"], record["chance"], path, title)
                log_pictures(trainer.loggers, {"accuracy": path}, trainer.global_step)
        return record
