"""Arrays kept in files of fixed numbers of rows, and what shares their filling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_lab.evaluation import Chunks, Rows, share


def filled(folder, count: int = 23, size: int = 5) -> tuple[Chunks, torch.Tensor]:
    values = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)
    chunks = Chunks(folder, size)
    for chunk in chunks.ranges(count):
        chunks.write(chunk, values[chunk.start : chunk.stop])
    return chunks, values


def test_chunks_cover_every_row_once_and_depend_on_the_size_alone(tmp_path):
    chunks = Chunks(tmp_path, 5)
    assert [i for chunk in chunks.ranges(23) for i in chunk] == list(range(23))
    assert chunks.ranges(40)[:4] == chunks.ranges(23)[:4]
    assert [chunks.path(c).name for c in chunks.ranges(11)] == ["000000.npy", "000001.npy", "000002.npy"]


def test_what_is_there_comes_back_and_what_is_not_is_missing(tmp_path):
    chunks, values = filled(tmp_path)
    assert torch.equal(torch.cat([chunks.read(c) for c in chunks.ranges(23)]), values)
    assert chunks.missing(23) == [] and chunks.missing(21) == []  # a file may hold more than is asked for
    assert chunks.missing(24) == [range(20, 24)]  # but not less
    assert chunks.missing(30) == [range(20, 25), range(25, 30)]
    chunks.path(range(5, 10)).unlink()
    assert chunks.missing(23) == [range(5, 10)]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    chunks = Chunks(tmp_path / "new", 5)

    def cut(file, rows):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", cut)
    with pytest.raises(OSError, match="disk full"):
        chunks.write(range(5), torch.ones(5))
    assert list((tmp_path / "new").iterdir()) == [] and chunks.missing(5) == [range(5)]


@pytest.mark.parametrize("index", [
    slice(None), slice(3, 9), slice(0, 0), slice(None, None, 4), np.array([10, 2, 2, 0]), torch.tensor([11, 3]),
])  # fmt: skip
def test_rows_index_like_an_array(tmp_path, index):
    chunks, values = filled(tmp_path)
    rows = Rows(chunks, range(4, 19))
    assert len(rows) == 15 and rows.shape == (15, 3)
    assert torch.equal(
        rows[index],
        torch.from_numpy(values[4:19].numpy()[np.asarray(index) if isinstance(index, torch.Tensor) else index]),
    )


def test_sharing_fills_what_lacks_and_nothing_else(tmp_path):
    chunks, values = filled(tmp_path)
    chunks.path(range(10, 15)).unlink()
    done = []

    def work(chunk):
        done.append(chunk)
        chunks.write(chunk, values[chunk.start : chunk.stop])

    share(chunks, 23, work, "rows")
    share(chunks, 23, work, "rows")
    assert done == [range(10, 15)] and torch.equal(Rows(chunks, range(23))[:], values)
