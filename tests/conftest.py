"""Shared by all tests: recorded values, exact denoisers, and no network."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers and what they start share two cores

import numpy as np
import pytest
import quick_hydra
import torch

quick_hydra.install()
sys.path.insert(0, str(Path(__file__).parent / "reference"))

torch.set_num_threads(1)

_cache = tempfile.TemporaryDirectory()
os.environ["DIFFUSION_LAB_CACHE"] = _cache.name  # what the tests decode is no news for the user's own


QUICK = {
    *("conf", "control", "denoiser", "guidance", "iddpm", "layers", "likelihood", "loss"),
    *("metric_frechet", "network_adm", "network_official", "process", "refusals", "sampler"),
    *("sampler_official", "score_matching", "teacher", "techniques"),
}
"""Files of tests that `pytest -m quick` runs: those in one process that catch most slips."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of QUICK."""
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker("quick")


class Recorded:
    """Arrays of a reference file as tensors."""

    def __init__(self, name: str) -> None:
        with np.load(Path(__file__).parent / "reference" / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.meta = json.loads(bytes(self.arrays.pop("_meta")).decode())

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.as_tensor(self.arrays[key])


@pytest.fixture(scope="session")
def recorded():
    return Recorded


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    from matplotlib.figure import Figure  # loaded by tests of figures alone

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for anything but this machine fails."""
    connect = socket.socket.connect

    def guarded(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1")
        assert local, f"a test reached for the network: {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
