"""Reference statistics of a data set, as a file that this and other programs compare samples with."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.origin import command, spelled
from diffusion_lab.config.trainer_keys import check_devices
from diffusion_lab.data import DataModule
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import reference
from diffusion_lab.metric import Statistics
from diffusion_lab.output import say
from diffusion_lab.run.data_module import data_module
from diffusion_lab.run.import_checkpoint import composed


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
    settings = composed(overrides)
    own = Path(settings["paths"]["statistics_dir"], f"{settings['choices']['data']}_{split}.npz")
    target = Path(out) if out else own
    if target.exists():
        raise ConfigError(f"{target} exists already: choose another out=..., or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ConfigError(f"out={target} cannot be written ({error.strerror}): choose another out=...") from error
    if settings["metric"]["features"] is None:
        raise ConfigError("points in the plane have no feature statistics: choose a data set of images, or metric=...")
    keys = ("accelerator", "devices", "num_nodes", "strategy")
    try:
        check_devices(settings["trainer"])
        fabric = Fabric(**{k: settings["trainer"][k] for k in keys})
        data = data_module(settings["data"])
        data.prepare_data()
        data.setup("test")
        extractor = instantiate(settings["metric"]["features"], "metric.features")
        reference.prepare(extractor, data, fabric.device)
    except (OSError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(str(error).replace("\n", " ")) from error
    if rank_zero_only.rank == 0:
        size = named(data, split).size(split)
        say(f"measuring {min(count or size, size):,} images of {split} with {extractor.name} features; writes {target}")
    fabric.launch()
    path = reference.measure(
        named(data, split),
        split,
        extractor,
        fabric.device,
        settings["paths"]["statistics_dir"],
        count,
        settings["callback"]["evaluation"]["evaluator"]["batch_size"],
    )
    if ranks.rank_and_world()[0] == 0:
        shutil.copyfile(path, target)
        report(target)
    return target


def named(data: DataModule, split: str) -> Any:
    """The data, or for split "all" both splits as one."""
    if split != "all":
        return data
    both = type(type(data).__name__, (BothSplits,), {})  # the data set's name goes into the protocol
    return both(data)


def report(path: Path) -> None:
    """Print the contents of a file of statistics."""
    found = Statistics.load(path)
    for key, value in found.protocol.items():
        say(f"  {key:<18} {value}")
    say(f"written to {path}: mu and sigma of {found.moments.count:,} images in {len(found.moments.mean)} dimensions")
    reference = shlex.quote(f"metric.reference={spelled(os.path.abspath(path))}")
    say(f"evaluate samples against it:  {command('sample', 'last', 'evaluate=true', reference)}")
