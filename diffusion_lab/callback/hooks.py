"""A callback without the hooks that it does not use."""

from __future__ import annotations

import pytorch_lightning as pl


class OptionalHooks(pl.Callback):
    """Takes no time in a training step but for the hooks that a subclass defines.

    Lightning calls six a step of every callback, empty ones too, which for ours took longer than what they do; it
    passes over what cannot be called.  So there is no hook of these six to call by `super()`.
    """

    on_train_batch_start = on_before_zero_grad = on_before_backward = None
    on_after_backward = on_before_optimizer_step = on_train_batch_end = None
