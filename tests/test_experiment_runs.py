"""conf/experiment: every row is built, takes two training steps and draws samples, small and on stand-ins for the data."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from experiment import NAMES, settings
from official import at, kind, levels, low, sde

from diffusion_lab.callback import EMA, RankSeed
from diffusion_lab.data import CIFAR10
from diffusion_lab.data.base import Splits
from diffusion_lab.data.batches import InMemory
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.launch.instantiate import instantiate
from diffusion_lab.launch.train import set_up
from diffusion_lab.model import Model

REFERENCE = Path(__file__).parent / "reference"
FACTS = json.loads((REFERENCE / "constants.json").read_text())["facts"]
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
SMALL = {
    "UNet": {"channels": 8, "groups": 4, "multipliers": [1, 1], "blocks": 1, "image_size": 16},
    "NCSNpp": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "image_size": 16},
    "RefineNet": {"channels": 4, "image_size": 16},
    "MLP": {"width": 8},
}


def shrunken(name: str) -> dict[str, Any]:
    """The settings of an experiment with a small network, small data, two steps and nothing said or drawn."""
    c = settings(name)
    network, data = c["model"]["network"], c["data"]
    network |= SMALL[kind(network)]
    if kind(data) == "CIFAR10":
        c["model"]["shape"] = data["shape"] = [3, 16, 16]
        data["batch_size"] = 8
    else:
        data |= {"train_size": 64, "held_out_size": 64, "batch_size": 8, "eval_batch_size": 64}
    c["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "val_check_interval": None}
    c["callback"]["evaluation"]["evaluator"]["features"] = None
    c["choices"] = {"data": "stand-in", "sampler": "its own"}
    return c


def sampler_apart(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the settings that training depends on, as a key; the sampler's settings)."""
    sampler = c["model"]["sampler"]
    kept = {key: c[key] for key in ("data", "trainer", "callback", "choices")}
    return json.dumps({**kept, "model": {**c["model"], "sampler": None}}, sort_keys=True), sampler


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    """CIFAR-10 without its files: 32 random images."""

    def load(self: CIFAR10) -> Splits:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (32, *self.shape), dtype=torch.uint8, generator=generator)
        part = InMemory(images, torch.zeros(32, dtype=torch.int64))
        return Splits(part, part, "stand-in")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "prepare_data", lambda self: None)
        patch.setattr(CIFAR10, "load", load)
        yield
    trained.cache_clear()


@functools.cache
def trained(key: str, sampler: str) -> tuple[Model, pl.Trainer, list[torch.Tensor]]:
    """A model after two steps, its trainer, and the parameters of before; rows that differ in their sampler share it."""
    c = json.loads(key)
    c["sampler"] = c["model"]["sampler"] = json.loads(sampler)
    torch.manual_seed(0)
    data, model, trainer = set_up(c, Path("."))
    trainer.callbacks = [callback for callback in trainer.callbacks if isinstance(callback, EMA | RankSeed)]
    before = [p.detach().clone() for p in model.network.parameters()]
    trainer.fit(model, datamodule=data)
    return model, trainer, before
