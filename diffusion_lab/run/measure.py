"""Reference statistics of a data set, as a file that this and other programs compare samples with."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.config.compose import training
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.origin import command, quoted
from diffusion_lab.data import DataModule
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.evaluation import reference
from diffusion_lab.metric import Statistics
from diffusion_lab.output import say
from diffusion_lab.run.data import data_module
from diffusion_lab.run.lightning import build_fabric
from diffusion_lab.storage.atomic_file import check_writable


class BothSplits:
    """Both splits of a data set as one, for a folder of images that serves only as reference."""

    def __init__(self, data: DataModule) -> None:
        self.data = data

    def size(self, split: str) -> int:
        """Number of items in both splits."""
        return self.data.size("train") + self.data.size("held_out")

    def images(self, split: str, count: int, first: int = 0) -> Tensor:
        """Items of train, followed by those of held_out."""
        border = self.data.size("train")
        parts = []
        if first < border:
            parts.append(self.data.images("train", min(count, border - first), first=first))
        if first + count > border:
            start = max(first, border)
            parts.append(self.data.images("held_out", first + count - start, first=start - border))
        return torch.cat(parts)

    def fingerprint(self, split: str) -> str:
        """The sha256 of both fingerprints."""
        both = self.data.fingerprint("train") + self.data.fingerprint("held_out")
        return hashlib.sha256(both.encode()).hexdigest()


def measure(overrides: Sequence[str], split: str, out: str | None, count: int | None) -> Path:
    """Measure a split of the data set that the overrides name; return the file that was written.

    Raises:
        ConfigError: if the data, the extractor or the devices are not available.
    """
    settings = training(overrides)
    directory = settings["paths"]["statistics_dir"]
    target = Path(out or Path(directory, f"{settings['choices']['data']}_{split}.npz"))
    check_target(target)
    if settings["metric"]["features"] is None:
        raise ConfigError("points in the plane have no feature statistics: choose a data set of images, or metric=...")
    fabric = build_fabric({**settings["trainer"], "precision": "32-true"})
    with as_config_error(OSError, ValueError, RuntimeError, MisconfigurationException):
        data = data_module(settings["data"], "test")
        extractor = instantiate(settings["metric"]["features"], "metric.features")
        reference.prepare(extractor, data, fabric.device)
    if split == "all":  # the data set's name goes into the protocol
        data = type(type(data).__name__, (BothSplits,), {})(data)
    if rank_zero_only.rank == 0:
        size = data.size(split)
        say(f"measuring {min(count or size, size):,} images of {split} with {extractor.name} features; writes {target}")
    fabric.launch()
    batch_size = settings["callback"]["evaluation"]["evaluator"]["batch_size"]
    path = reference.measure(data, split, extractor, fabric.device, directory, count, batch_size)
    if ranks.rank_and_world()[0] == 0:
        shutil.copyfile(path, target)
        report(target)
    return target


def check_target(target: Path) -> None:
    """Refuse a file that exists or cannot be written.

    Raises:
        ConfigError: with the reason.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already: choose another out=..., or remove it first")
    try:
        check_writable(target.parent)
    except OSError as error:
        reason = os.strerror(error.errno)
        raise ConfigError(f"out={target} cannot be written ({reason}): choose another out=...") from error


def report(path: Path) -> None:
    """Print the contents of a file of statistics."""
    found = Statistics.load(path)
    for key, value in found.protocol.items():
        say(f"  {key:<18} {value}")
    say(f"written to {path}: mu and sigma of {found.moments.count:,} images in {len(found.moments.mean)} dimensions")
    reference = shlex.quote(f"metric.reference={quoted(os.path.abspath(path))}")
    say(f"evaluate samples against it:  {command('sample', 'last', 'evaluate=true', reference)}")
