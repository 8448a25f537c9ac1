"""A progress bar for the entire run, and early in a long one a line with its expected duration."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, Timer
from tqdm import tqdm

from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model
from diffusion_lab.ranges import NonNegative, checked

MEASURED = (10, 100)
"""Optimiser steps between which the speed is measured; the first steps are slower."""

LONG = 300.0
"""Smallest duration of a run, in seconds, for which it is printed."""


class Progress(OptionalHooks, ProgressBar):
    """Shows optimiser steps, time left, loss and images/s, on one line of a terminal or in occasional lines of a log.

    Args:
        refresh_seconds: minimum time between two updates on a terminal.
    """

    @checked
    def __init__(self, refresh_seconds: NonNegative = 0.25) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds if sys.stderr.isatty() else max(refresh_seconds, 20.0)
        self.bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self.seen, self.first, self.start, self.shown = 0, trainer.global_step, time.perf_counter(), 0.0
        self.times: dict[int, float] = {}
        self.kind = model.kind
        self.bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            disable=not (self._enabled and trainer.is_global_zero),
            unit="step",
            desc="training",
            miniters=0,
            mininterval=0,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += len(batch[0]) * trainer.world_size
        done = trainer.global_step - self.first
        if done in MEASURED and done not in self.times and trainer.max_steps > 0 and trainer.is_global_zero:
            outputs["loss"].item()  # waits for the device
            self.times[done] = time.perf_counter()
            if len(self.times) == len(MEASURED):
                self.print_duration(trainer)
        now = time.perf_counter()
        if now - self.shown < self.refresh_seconds and trainer.global_step < trainer.max_steps:
            return
        self.shown = now
        rate = self.seen / (now - self.start)
        self.bar.set_postfix_str(f"loss {outputs['loss'].item():.4f}, {rate:,.0f} {self.kind}/s", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def print_duration(self, trainer: pl.Trainer) -> None:
        """Print the expected duration and end of the run from the speed of its first steps, if longer than `LONG`.

        `trainer.max_time` may end the run earlier.
        """
        early, late = MEASURED
        rate = (late - early) / (self.times[late] - self.times[early])
        steps = trainer.max_steps - trainer.global_step
        timers = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]
        left = min([steps / rate, *(seconds for seconds in timers if seconds is not None)])
        total = self.times[late] - self.start + left
        if total < LONG:
            return
        more = "more " if self.first else ""
        possible, planned = late + round(left * rate), late + steps
        count = f"{planned:,}" if possible == planned else f"{possible:,} of {planned:,}"
        limit = "" if possible == planned else ", by trainer.max_time"
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        line = f"about {duration(total)} for {count} {more}steps{limit}: {rate:.3g} steps/s; ends {end}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, model: Model, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)


def duration(seconds: float) -> str:
    """Format a time in its two largest units, of days, hours and minutes."""
    minutes = max(1, round(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    units = {"d": days, "h": hours, "min": minutes}
    while len(units) > 1 and not next(iter(units.values())):
        units.pop(next(iter(units)))
    return " ".join(f"{count} {unit}" for unit, count in list(units.items())[:2] if count)
