"""Evaluation during training and at its end, on all ranks, of EMA and raw weights."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from diffusion_lab import ranks
from diffusion_lab.callback.checkpoint import Checkpoint
from diffusion_lab.callback.ema import EMA, averaged
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.callback.media import best_effort
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation import Evaluator, Record, chart_name
from diffusion_lab.evaluation.duration import estimate_duration, limit_duration
from diffusion_lab.evaluation.results import read_results
from diffusion_lab.model import Model
from diffusion_lab.ranges import Count, NonNegativeInt, Positive, SampleSize, checked
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.run_directory import RESULTS

LONG = 10_000
"""Steps of a training from which on the duration of its final evaluation is printed at the start."""


class Evaluation(OptionalHooks):
    """Runs an `Evaluator` every `every_n_steps` steps and at the end, and writes `<run_dir>/results.json`.

    Sampling is distributed over all ranks.  The expected duration is printed before training.  An evaluation during
    training uses fewer samples if it would take longer than `max_seconds`; the names of its metrics contain their
    number.  Metrics of the raw weights have the prefix `raw_`.

    Args:
        evaluator: computes the metrics.
        run_dir: the run's directory, shared by all ranks.
        every_n_steps: optimiser steps between two evaluations; None evaluates only at the end.
        at_end: whether to evaluate at the end of training.
        weights: evaluated weights: the EMA, the raw weights, or both.
        samples: number of samples during training; None takes the evaluator's.
        likelihood_samples: held-out items for the likelihood during training; None takes the evaluator's.
        max_seconds: upper bound of the duration during training; None sets no bound.
        best: metric whose best checkpoint is saved as `checkpoints/best.ckpt`, by name, with or without its count
            ("fid", "fd_digits_held_out", "flow_bits_per_dim"); None saves none.
    """

    @checked
    def __init__(
        self,
        evaluator: Evaluator,
        run_dir: str,
        every_n_steps: Count | None = None,
        at_end: bool = True,
        weights: Literal["ema", "raw", "both"] = "ema",
        samples: SampleSize | None = None,
        likelihood_samples: NonNegativeInt | None = None,
        max_seconds: Positive | None = 600.0,
        best: str | None = None,
    ) -> None:
        self.evaluator, self.run_dir, self.every_n_steps, self.at_end = evaluator, Path(run_dir), every_n_steps, at_end
        self.weights, self.max_seconds, self.best = weights, max_seconds, best
        self.during = copy.copy(evaluator)
        self.during.samples = samples or evaluator.samples
        if likelihood_samples is not None:
            self.during.likelihood_samples = likelihood_samples
        self.facts: dict[str, Any] = {}
        self.results: dict[str, Any] | None = None
        self.best_name: str | None = None
        self.best_value: float | None = None
        self._configured = [self.during.samples, self.during.likelihood_samples, max_seconds]
        self._sizes: tuple[int, int | None] | None = None
        self._evaluated, self._first, self._trained, self._since = 0, -1, 0.0, 0.0

    def check_best(self, data: DataModule, model: Model) -> None:
        """Raise ValueError, naming the available metrics, if `best` is not exactly one of them."""
        if self.best and not self.every_n_steps:
            raise ValueError("callback.evaluation.best needs evaluations while training: set every_n_steps")
        names = self.names(model, data)
        found = [name for name in names if self.is_best(name)]
        if self.best and len(found) != 1:
            which = f"could mean {' or '.join(found)}" if found else f"is not one of {', '.join(names)}"
            raise ValueError(f"callback.evaluation.best={self.best} {which}")

    def names(self, model: Model, data: DataModule) -> list[str]:
        """Return the names of the metrics of an evaluation during training."""
        names = self.during.names(model, data)
        prefixes = {"ema": ("",), "raw": ("raw_",), "both": ("", "raw_")}[self.weights]
        return [f"{prefix}{name}" for prefix in prefixes for name in names]

    def is_best(self, name: str) -> bool:
        """Whether `best` refers to this metric."""
        return self.best is not None and (name == self.best or name.startswith(f"{self.best}_"))

    def best_metric(self, names: Sequence[str]) -> str | None:
        """Return the metric that `best` refers to, also if its count was reduced."""
        if self.best is None:
            return None
        without_count = self.best.rpartition("_")[0]
        return next((n for n in names if self.is_best(n)), None) or next(
            (n for n in names if n.rpartition("_")[0] == without_count and not n.endswith("_infinity")), None
        )

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._since, self._first = time.perf_counter(), trainer.global_step
        data, passes = trainer.datamodule, 2 if self.weights == "both" else 1
        if self.every_n_steps:
            if self._sizes is not None:  # a resumed run keeps its numbers of samples
                self.during.samples, self.during.likelihood_samples = self._sizes
                duration = estimate_duration(model, self.during, data, passes)
            else:
                duration = limit_duration(self.during, model, data, self.max_seconds, passes)
            self._sizes = self.during.samples, self.during.likelihood_samples
            name = self.best_metric(self.names(model, data))
            if name != self.best_name:
                self.best_name, self.best_value = name, None
            times = (trainer.max_steps - trainer.global_step) // self.every_n_steps
            if trainer.is_global_zero:
                every = f"every {self.every_n_steps} steps"
                print(f"evaluation {every}, about {duration} each, {times} in this run", flush=True)
        if self.at_end and trainer.max_steps >= LONG:
            duration = estimate_duration(model, self.evaluator, data, passes)
            if trainer.is_global_zero:
                without = "none with callback.evaluation.at_end=false"
                print(f"evaluation at the end: about {duration}; {without}", flush=True)
        if trainer.global_step:
            self.evaluate_if_due(trainer, model)  # an evaluation that was interrupted

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.evaluate_if_due(trainer, model)

    def evaluate_if_due(self, trainer: pl.Trainer, model: Model) -> None:
        """Evaluate every `every_n_steps` steps; save a checkpoint first, so that the evaluation can be interrupted."""
        step, every = trainer.global_step, self.every_n_steps
        # `_evaluated`: with gradient accumulation, several batches end at the same step.
        if every and step % every == 0 and self._evaluated != step < trainer.max_steps:
            for callback in trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.save(trainer)
            self._evaluated = step
            self.evaluate(trainer, model, self.during)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        trained = trainer.global_step > self._first
        if self.at_end and (trained or not ranks.from_first(self.is_concluded(trainer.global_step))):
            self.evaluate(trainer, model, self.evaluator)

    def is_concluded(self, step: int) -> bool:
        """Whether results.json has the results of this step, or no final evaluation is configured."""
        return not self.at_end or (read_results(self.run_dir / RESULTS) or {}).get("step") == step

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_name": self.best_name,
            "best_value": self.best_value,
            "sizes": {"asked": self._configured, "used": self._sizes},
            "training_seconds": self.training_seconds,
            "evaluated": self._evaluated,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_name, self.best_value = state_dict["best_name"], state_dict["best_value"]
        self._trained, self._evaluated = state_dict["training_seconds"], state_dict.get("evaluated", 0)
        if state_dict["sizes"]["asked"] == self._configured:
            self._sizes = state_dict["sizes"]["used"]

    @property
    def training_seconds(self) -> float:
        """Seconds of training so far, without evaluations."""
        return self._trained + (time.perf_counter() - self._since if self._since else 0.0)

    def evaluate(self, trainer: pl.Trainer, model: Model, evaluator: Evaluator) -> None:
        """Compute and log the metrics, write results.json, and save the checkpoint if it is the best."""
        self._trained, start = self.training_seconds, time.perf_counter()
        has_ema = any(isinstance(callback, EMA) for callback in trainer.callbacks)
        metrics: dict[str, Record] = {}
        evaluator.seconds.clear()
        try:
            if evaluator is self.evaluator:
                self.print_plan(trainer, model)
            if self.weights != "raw":
                with averaged(trainer, model):
                    metrics |= self.measure(trainer, model, evaluator, "ema" if has_ema else "raw")
            if self.weights != "ema" and (has_ema or self.weights == "raw"):
                raw = self.measure(trainer, model, evaluator, "raw")
                metrics |= {f"raw_{name}": record for name, record in raw.items()}
        # A failed evaluation can be repeated later and must not end the training.
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            if trainer.is_global_zero:
                print(f"evaluation at step {trainer.global_step} failed, training continues: {error}", flush=True)
            self._since = time.perf_counter()
            return
        self.results = {
            "run": str(self.run_dir),
            "checkpoint": None,
            "step": trainer.global_step,
            "weights": self.weights if has_ema else "raw",
            **self.facts,
            "seconds": round(time.perf_counter() - start, 1),
            "seconds_by_part": {part: round(seconds, 3) for part, seconds in evaluator.seconds.items()},
            "training_seconds": round(self._trained, 1),
            **dict(zip(("nfe", "samples_per_second"), evaluator.cost or (), strict=False)),
            "metrics": metrics,
        }
        if trainer.is_global_zero:
            values = {
                f"eval/{shown}": record["value"]
                for name, record in metrics.items()
                for shown in (name, chart_name(name))  # the latter is equal for runs with other counts
            }
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            with best_effort(self.run_dir / RESULTS):
                write_json(self.run_dir / RESULTS, self.results)
        self._since = time.perf_counter()
        self.keep_best(trainer, metrics)

    def print_plan(self, trainer: pl.Trainer, model: Model) -> None:
        """Print the metrics, the duration and the output of the final evaluation."""
        duration = estimate_duration(model, self.evaluator, trainer.datamodule, 2 if self.weights == "both" else 1)
        if trainer.is_global_zero:
            plan = self.evaluator.plan(model, trainer.datamodule)
            print(f"evaluation: {plan}, about {duration}; writes results.json", flush=True)

    def measure(self, trainer: pl.Trainer, model: Model, evaluator: Evaluator, weights: str) -> dict[str, Record]:
        """Return the records of the model's current weights; the samples are deleted afterwards."""
        folder = self.run_dir / "evaluation" / f"step_{trainer.global_step:08d}_{weights}"
        self.remove(folder)  # samples of an interrupted run of these steps have other weights
        with model.unsharded():
            records = evaluator(model, trainer.datamodule, folder)
        self.remove(folder)
        return {name: {**record, "weights": weights} for name, record in records.items()}

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove a directory, and its parent if that is then empty, after all ranks have finished with it."""

        def work() -> None:
            if folder.exists():
                shutil.rmtree(folder)
                if not any(folder.parent.iterdir()):
                    folder.parent.rmdir()

        ranks.gather(None)
        ranks.on_first(work)

    def keep_best(self, trainer: pl.Trainer, metrics: dict[str, Record]) -> None:
        """Save `checkpoints/best.ckpt` if the metric `best` is better than before."""
        record = metrics.get(self.best_name or "")
        if record is None or not math.isfinite(record["value"]):
            return
        value, lower, before = record["value"], record["better"] == "lower", self.best_value
        if before is None or (value < before if lower else value > before):
            self.best_value = value
            trainer.save_checkpoint(self.run_dir / "checkpoints" / "best.ckpt")
