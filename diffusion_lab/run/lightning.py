"""Lightning and torch as runs use them: silent, with SLURM and a timeout, compiled, not profiled."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.config.trainer_keys import check_devices
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.monkeypatches import set_timeout
from diffusion_lab.output import say

OF_RANKS = ("timeout", "max_restarts", "rdzv_endpoint")
"""Keys of group trainer that are not arguments of Lightning's Trainer."""

OF_FABRIC = ("accelerator", "devices", "num_nodes", "strategy", "precision")
"""Keys of group trainer that are arguments of a Fabric."""


def quieten() -> None:
    """Silence library warnings that a user can do nothing about, and set torch's global options."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
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


def cluster() -> list[Any]:
    """Lightning's plug-in for SLURM, if SLURM started this process, without Lightning's automatic requeueing.

    That would save in the middle of a step and resume from that file whatever ckpt_path says.
    """
    return [SLURMEnvironment(auto_requeue=False)] if cluster_ranks()[0] == "srun" else []


def build_fabric(trainer: Mapping[str, Any]) -> Fabric:
    """Fabric for the devices of group trainer, not launched yet.

    Raises:
        ConfigError: for devices that do not exist, and a precision that they or sampling do not support.
    """
    precisions = ("32-true", "bf16-mixed", "16-mixed")
    if trainer["precision"] not in precisions:
        raise ConfigError(f"trainer.precision={trainer['precision']}: sampling supports {', '.join(precisions)}")
    check_devices(trainer)
    advice = "trainer: {}; use trainer.accelerator=cpu, or devices that exist"
    with as_config_error(MisconfigurationException, ValueError, RuntimeError, message=advice):
        fabric = Fabric(**{key: trainer[key] for key in OF_FABRIC}, plugins=cluster())
        set_timeout(fabric.strategy, trainer["timeout"])
    if fabric.strategy.precision.precision != trainer["precision"]:  # Lightning would only warn and use another one
        raise ConfigError(f"trainer.precision={trainer['precision']} needs a GPU: here, use bf16-mixed")
    return fabric


def compile_network(network: nn.Module, device: torch.device, replay: bool = False) -> None:
    """Have torch.compile compile a network for `device` at its first call; it stays the same module.

    With `replay`, for calls of a few fixed shapes whose output is read before the next one (sampling), a CUDA device
    also records all kernels of a call as one CUDA graph, so that the host does not launch them one by one.

    Raises:
        ConfigError: if the compiler does not work there; a one-line function is compiled to find out.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, Python header or Triton each raises a different class
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"compile=true needs a working compiler for {device.type} ({reason}): install one, or set compile=false"
        ) from error
    if rank_zero_only.rank == 0:
        say("compile=true: the first steps compile the network, which takes minutes for a large one")
    network.compile(**({"mode": "reduce-overhead", "dynamic": False} if replay and device.type == "cuda" else {}))


class Unprofiled(PassThroughProfiler):
    """Measure nothing, and reuse one context, where Lightning creates a new one for each hook of each callback.

    A step enters about seventy of them, 1.3 us each.
    """

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        return self.nothing
