"""Complete a training that was stopped after its last step: images, evaluation, results.json."""

from __future__ import annotations

import pytorch_lightning as pl

from diffusion_lab import ranks
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.model import Model
from diffusion_lab.monkeypatches import set_last_step


class Conclusion(OptionalHooks):
    """Has `on_train_start` and `on_train_end` of every callback called where a resumed run has no step left to train.

    Lightning skips both then.  They are called only if the `is_concluded(step)` of some callback is False, because a
    file that its `on_train_end` writes is missing.  Must be the first callback.

    Args:
        step: of the checkpoint that the run is resumed from; 0 for a new run.
    """

    def __init__(self, step: int) -> None:
        self.step, self._max_steps = step, -1

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Whether all steps are trained, and the end was not reached."""
        checks = [callback.is_concluded for callback in trainer.callbacks if hasattr(callback, "is_concluded")]
        return 0 < trainer.max_steps <= self.step and not all(check(self.step) for check in checks)

    def on_fit_start(self, trainer: pl.Trainer, model: Model) -> None:
        self._max_steps = trainer.max_steps
        if ranks.from_first(self.is_missing(trainer)):
            set_last_step(trainer, -1)

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        set_last_step(trainer, self._max_steps)
