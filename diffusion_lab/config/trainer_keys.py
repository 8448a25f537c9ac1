"""Refuse keys of Lightning's Trainer that have no effect here: epochs, devices that do not exist."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from diffusion_lab.config.environment import cluster_ranks, local_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
"""Strategies, by name, in which each rank is a separate command."""

ELSEWHERE = {
    "callbacks": "add one with +callback.NAME._target_=...",
    "logger": "choose logger=csv, tensorboard, wandb, mlflow or trackio",
    "plugins": "there is no key for them",
    "default_root_dir": "set hydra.run.dir or paths.log_dir",
    "enable_checkpointing": "set callback.checkpoint.every_n_steps",
    "fast_dev_run": "choose debug=fast",
    "limit_train_batches": "training runs for a number of steps: set trainer.max_steps",
    "limit_test_batches": "there is no test loop: set metric.samples",
    "limit_predict_batches": "there is no prediction loop: use sample.py num_samples=...",
    "reload_dataloaders_every_n_epochs": "training has no epochs",
}
"""Arguments of the Trainer that are set or unused here, and what to do instead."""


def complaint(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the keys of group trainer, as far as that is known without looking for devices."""
    trainer = config.get("trainer") or {}
    for key, advice in ELSEWHERE.items():
        if trainer.get(key) not in (None, False) and not (key.startswith("limit_") and trainer[key] == 1.0):
            return f"trainer.{key}={trainer[key]} has no effect here: {advice}"
    strategy = trainer.get("strategy")
    if str(strategy).startswith(("fsdp", "deepspeed")):
        return f"trainer.strategy={strategy} writes checkpoints in another format: use trainer=fsdp"
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        return (
            f"trainer.strategy={strategy} does not work, because each rank is a separate command: "
            f"choose {', '.join(STRATEGIES)}, or trainer=fsdp"
        )
    return _devices(trainer.get("devices"), trainer.get("accelerator"))


def _devices(devices: Any, accelerator: str | None) -> str | None:
    allowed = "a number from 1, -1 (all GPUs), a list of GPUs such as [0,1], or auto"
    numbers = str(devices).replace(" ", "").split(",")
    if isinstance(devices, str) and devices != "auto" and not all(n.lstrip("-").isdecimal() for n in numbers):
        return f"trainer.devices={devices} is not valid: use {allowed}"
    if devices == 0 or (isinstance(devices, int) and devices < -1):
        return f"trainer.devices={devices} is not valid: use {allowed}"
    if isinstance(devices, list) and (not devices or len({*devices}) < len(devices) or min(devices) < 0):
        return f"trainer.devices={devices} is not a list of different GPUs: use {allowed}"
    if accelerator == "cpu" and (devices == -1 or isinstance(devices, list)):
        return f"trainer.devices={devices} means GPUs: with trainer.accelerator=cpu, use a number of ranks"
    return None


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse devices that this machine does not have; warn on the first rank if there are more ranks than cores.

    Raises:
        ConfigError: with the key that selects ranks on the CPU.
    """
    warning = compare_devices(trainer, *machine())
    if warning and not cluster_ranks()[1]:
        say(warning)


def compare_devices(trainer: Mapping[str, Any], gpus: int, cores: int) -> str | None:
    """Refuse GPUs on a machine without one; return a warning if there are more CPU ranks than cores.

    Args:
        trainer: keys of group trainer.
        gpus, cores: what this machine has.

    Raises:
        ConfigError: with the key that selects ranks on the CPU.
    """
    devices, accelerator = trainer.get("devices"), trainer.get("accelerator")
    ranks = local_ranks(trainer) or 1
    if not gpus and accelerator == "auto" and (devices == -1 or isinstance(devices, list)):
        raise ConfigError(f"trainer.devices={devices} means GPUs, but no GPU was found: set trainer.devices=1")
    if not gpus and accelerator == "auto" and ranks > 1:
        raise ConfigError(
            f"trainer.devices={devices}, but no GPU was found: add trainer.accelerator=cpu if you mean {ranks} CPU "
            "ranks, or set trainer.devices=1"
        )
    if not gpus and accelerator in ("gpu", "cuda", "mps"):
        raise ConfigError(f"trainer.accelerator={accelerator}, but no GPU was found: use trainer.accelerator=cpu")
    if accelerator == "cpu" and ranks > cores:
        return f"warning  {ranks} CPU ranks share {cores} cores: fewer, up to trainer.devices={cores}, are as fast"
    return None


def machine() -> tuple[int, int]:
    """(GPUs, cores) that this process may use."""
    import torch

    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    return gpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_in_steps(trainer: Mapping[str, Any], items: int, batch: int) -> None:
    """Refuse keys counted in epochs: the stream of batches has no end, and neither has an epoch.

    Args:
        trainer: keys of group trainer.
        items: size of the training split.
        batch: items per optimiser step.

    Raises:
        ConfigError: with the equivalent number of steps.
    """
    steps = math.ceil(items / batch)
    epochs = {"max_epochs": "max_steps", "min_epochs": "min_steps", "check_val_every_n_epoch": "val_check_interval"}
    wanted = {key: (trainer.get(key), other) for key, other in epochs.items()}
    interval = trainer.get("val_check_interval")
    if isinstance(interval, float) and not interval.is_integer():
        wanted["val_check_interval"] = (interval, "val_check_interval")
    for key, (value, other) in wanted.items():
        if value not in (None, -1):
            plus = "+" if other == "min_steps" else ""
            raise ConfigError(
                f"trainer.{key}={value}: give steps; 1 epoch = {steps} steps ({items} items, {batch} per step): "
                f"leave it out and set {plus}trainer.{other}={max(1, round(value * items / batch + 0.499))}"
            )
