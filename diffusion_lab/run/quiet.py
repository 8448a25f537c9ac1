"""Silence library warnings that a user can do nothing about."""

from __future__ import annotations

import logging
import os
import warnings

import torch


def quieten() -> None:
    """Silence library warnings that a user can do nothing about, and set torch's global options."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*litlogger.*",
        ".*isinstance.treespec.*",
        ".*`training_step` returned.*",
        ".*Checkpoint directory.*",
        ".*lr_scheduler.step.*",
        ".*fit loop.*",
        ".*dataloader is not resumable.*",
        ".*AMP with fp16 is not supported.*",
        "the first of the sampler's .*",  # commands print it in a line of their own
    ):
        warnings.filterwarnings("ignore", message=text)
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        # Lightning makes torch look for NVIDIA's library; Adam does so in every step, which takes 90 us without a GPU.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
