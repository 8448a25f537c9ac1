"""When checkpoints are saved."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.data import DataModule
from diffusion_lab.model import Model
from diffusion_lab.ranges import Count, checked
from diffusion_lab.storage.atomic_file import NotWritten, check_writable, format_bytes, free_bytes


class Checkpoint(OptionalHooks):
    """Saves `<run_dir>/checkpoints/step_XXXXXXXX.ckpt` every `every_n_steps` steps and at the end of training.

    If a validation was due at the step of the checkpoint but interrupted, the resumed run validates first.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two checkpoints.
        keep: number of newest checkpoints to keep; null keeps all.
    """

    @checked
    def __init__(self, run_dir: str, every_n_steps: Count = 1000, keep: Count | None = 2) -> None:
        self.folder, self.every_n_steps, self.keep = Path(run_dir) / "checkpoints", every_n_steps, keep
        self._saved = self._step = self._validated = -1

    def check(self, data: DataModule, model: Model) -> None:
        """Raise `NotWritten` if the run's directory cannot be written to, or has no room for the checkpoints.

        A checkpoint holds the weights, their EMA and two moments of Adam in float32; while one is written, `keep` more
        exist.
        """
        size = sum(4 * 4 * p.numel() for p in model.network.parameters())
        check_writable(self.folder.parent)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if 0 <= limit < size:
            most = f"a file may have {format_bytes(limit)} here: raise ulimit -f"
            message = f"a checkpoint needs about {format_bytes(size)}, but {most}"
            raise NotWritten(errno.EFBIG, f"{self.folder}: {message}")
        count = 1 + (self.keep or 0)
        free = free_bytes(self.folder)
        if free is None:
            return
        free += sum(old.stat().st_size for old in self.folder.glob("step_*.ckpt"))
        if free < count * size:
            message = f"{count} checkpoints need about {format_bytes(count * size)}, {format_bytes(free)} are free"
            remedy = "callback.checkpoint.keep=1 keeps fewer, hydra.run.dir=DIR puts the run elsewhere"
            raise NotWritten(errno.ENOSPC, f"{self.folder}: {message}: {remedy}")

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._step = trainer.global_step
        every = trainer.val_check_batch
        due = isinstance(every, int) and trainer.limit_val_batches and self._validated != self._step  # or by the clock
        if self._step and due and self._step * trainer.accumulate_grad_batches % every == 0:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: pl.Trainer, model: Model) -> None:
        self._validated = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated"] = self._validated

    def on_load_checkpoint(self, trainer: pl.Trainer, model: Model, checkpoint: dict[str, Any]) -> None:
        """Resume after the batches that were processed; an interrupted validation starts again."""
        self._validated = checkpoint.get("validated", checkpoint["global_step"])
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_loop.batch_progress"][kind] for kind in ("current", "total")):
            counts.update(dict.fromkeys(("ready", "started"), counts["processed"]))
        for key in [key for key in loops if key.startswith("epoch_loop.val_loop.")]:
            del loops[key]

    def is_concluded(self, step: int) -> bool:
        """Whether the checkpoint of the last step exists."""
        return (self.folder / f"step_{step:08d}.ckpt").exists()

    def is_saved(self, trainer: pl.Trainer) -> bool:
        """Whether the current step is saved."""
        return self._saved == trainer.global_step

    def save(self, trainer: pl.Trainer) -> None:
        """Save the current step, once, then delete all but the newest `keep` checkpoints."""
        if self.is_saved(trainer):
            return
        for logger in trainer.loggers:  # the log must not end before the checkpoint
            logger.save()
        trainer.save_checkpoint(self.folder / f"step_{trainer.global_step:08d}.ckpt")
        self._saved = trainer.global_step  # only now: a signal may interrupt the line above
        if self.keep and trainer.is_global_zero:
            paths = sorted(self.folder.glob("step_*.ckpt"))
            # Checkpoints of later steps are damaged, otherwise this run would have resumed from them: keep them.
            for old in [path for path in paths if int(path.stem[5:]) <= trainer.global_step][: -self.keep]:
                old.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        # `_step`: while gradients accumulate, the step does not change.
        if self._step != trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)
        self._step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.save(trainer)
