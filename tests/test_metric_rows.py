"""One contract for all measures: rows may be a tensor, an array or a file, and are never read as a whole."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from diffusion_lab.metric import (
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    neighbour_scores,
)

BLOCK = 40


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Watched:
    """Rows that give out a few at a time, and nothing but by slices and integer arrays."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape = rows, rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        assert isinstance(index, slice) or index.dtype == np.int64
        part = self.rows[index]
        assert len(part) <= BLOCK
        return part


REFERENCE = normal(200, 6, seed=1)
MEASURES = {
    "moments": lambda rows: frechet_distance(moments(rows), moments(REFERENCE)),
    "infinity": lambda rows: frechet_at_infinity(rows, moments(REFERENCE)).value,
    "kernel": lambda rows: kernel_distance(rows, rows, 3, BLOCK).value,
    "inception_score": lambda rows: inception_score(rows, splits=2).value,
    "neighbours": lambda rows: neighbour_scores(rows, rows).density,
    "neighbours of samples": lambda rows: neighbour_scores(REFERENCE, rows).recall,
}


@pytest.mark.filterwarnings("error")  # a file that may not be written to
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_number_from_a_tensor_an_array_and_a_file(monkeypatch, tmp_path, measure, dtype):
    for name, constant in (
        ("moments", "_BLOCK"),
        ("frechet", "_BLOCK"),
        ("inception_score", "_BLOCK"),
        ("neighbours", "_SIDE"),
    ):
        monkeypatch.setattr(import_module(f"diffusion_lab.metric.{name}"), constant, BLOCK)
    rows = normal(230, 6).numpy().astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    before = rows.copy()
    whole = MEASURES[measure](torch.from_numpy(rows))
    for other in (rows, np.load(tmp_path / "rows.npy", mmap_mode="r"), Watched(rows)):
        assert MEASURES[measure](other) == pytest.approx(whole, rel=1e-12)
    assert (rows == before).all()
