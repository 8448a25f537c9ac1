"""Evaluating while training and at its end, on the averaged weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback.ema import EMA, averaged
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.model import Model


class Evaluation(pl.Callback):
    """Runs an `Evaluator` every so many steps and when training ends, and writes `<run_dir>/results.json`.

    Args:
        evaluator: what is measured.
        run_dir: the run's directory.
        protocol: facts that go with every number: data, sampler, steps, seed.
        every_n_steps: optimiser steps between two evaluations; None evaluates only at the end.
        at_end: evaluate when training ends.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        run_dir: str | Path,
        protocol: dict[str, Any] | None = None,
        every_n_steps: int | None = None,
        at_end: bool = True,
    ) -> None:
        self.evaluator, self.run_dir, self.protocol = evaluator, Path(run_dir), protocol or {}
        self.every_n_steps, self.at_end = every_n_steps, at_end
        self.results: dict[str, Any] | None = None
        self._evaluated = 0

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, every = trainer.global_step, self.every_n_steps
        # `_evaluated`: several batches of an accumulation end at the same step.
        if every and step % every == 0 and self._evaluated != step < trainer.max_steps:
            self._evaluated = step
            self.evaluate(trainer, model)

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        if self.at_end:
            self.evaluate(trainer, model)

    def evaluate(self, trainer: pl.Trainer, model: Model) -> None:
        """Measure on the EMA weights (the raw ones if there is no EMA), log the values, write the records."""
        start = time.perf_counter()
        with averaged(trainer, model):
            metrics = self.evaluator(model, trainer.datamodule)
        has_ema = any(isinstance(callback, EMA) for callback in trainer.callbacks)
        self.results = {
            "step": trainer.global_step,
            "weights": "ema" if has_ema else "raw",
            **self.protocol,
            "seconds": round(time.perf_counter() - start, 1),
            "metrics": metrics,
        }
        if trainer.is_global_zero:
            values = {f"eval/{name}": record["value"] for name, record in metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            write_results(self.run_dir / "results.json", self.results)


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write `results` as JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)
