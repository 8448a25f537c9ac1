"""A callback base class without overhead for unused hooks."""

from __future__ import annotations

import pytorch_lightning as pl


class OptionalHooks(pl.Callback):
    """Callback whose unused hooks cost no time in a training step.

    Lightning calls six hooks of every callback in each step, also empty ones, but skips those that are None.
    Subclasses therefore cannot call these six hooks by `super()`.
    """

    on_train_batch_start = on_before_zero_grad = on_before_backward = None
    on_after_backward = on_before_optimizer_step = on_train_batch_end = None
