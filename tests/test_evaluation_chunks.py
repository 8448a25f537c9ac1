"""Arrays kept in files of fixed numbers of rows, what shares their filling, and the samples and points kept in them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_job import tiny_model

from diffusion_lab import ranks
from diffusion_lab.data import Toy2D
from diffusion_lab.evaluation import ChunkedArray, Evaluator, Rows, SampleStore, compute_missing
from diffusion_lab.evaluation.toy2d import point_names, score_points
from diffusion_lab.finite import NonFinite
from diffusion_lab.metric import sliced_wasserstein, to_uint8
from diffusion_lab.sampler import DDIM, Sampler


def filled(folder, count: int = 23, size: int = 5) -> tuple[ChunkedArray, torch.Tensor]:
    values = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)
    chunks = ChunkedArray(folder, size)
    for chunk in chunks.ranges(count):
        chunks.write(chunk, values[chunk.start : chunk.stop])
    return chunks, values


def test_chunks_cover_every_row_once_and_depend_on_the_size_alone(tmp_path):
    chunks = ChunkedArray(tmp_path, 5)
    assert [i for chunk in chunks.ranges(23) for i in chunk] == list(range(23))
    assert chunks.ranges(40)[:4] == chunks.ranges(23)[:4]
    assert [chunks.path(c).name for c in chunks.ranges(11)] == ["00000000.npy", "00000005.npy", "00000010.npy"]


def test_what_is_there_comes_back_and_what_is_not_is_missing(tmp_path):
    chunks, values = filled(tmp_path)
    assert torch.equal(torch.cat([chunks.read(c) for c in chunks.ranges(23)]), values)
    assert chunks.missing(23) == [] and chunks.missing(21) == []  # a file may hold more than is asked for
    assert chunks.missing(24) == [range(20, 24)]  # but not less
    assert chunks.missing(30) == [range(20, 25), range(25, 30)]
    assert torch.equal(chunks.read(range(20, 22)), values[20:22])
    chunks.write(range(20, 24), torch.zeros(4, 3))  # a longer one takes its place
    assert chunks.missing(24) == [] and not chunks.read(range(20, 24)).any()
    chunks.path(range(5, 10)).unlink()
    assert chunks.missing(23) == [range(5, 10)]


def test_files_of_another_size_and_damaged_ones_are_never_taken_for_others(tmp_path):
    chunks, values = filled(tmp_path, 23, size=10)  # files at 0, 10, 20
    smaller = ChunkedArray(tmp_path, 5)
    assert smaller.missing(23) == [range(5, 10), range(15, 20)]
    assert torch.equal(smaller.read(range(10, 15)), values[10:15])
    for content in (b"", b"cut", chunks.path(range(0, 10)).read_bytes()[:-40]):
        chunks.path(range(10, 20)).write_bytes(content)
        assert chunks.missing(23) == [range(10, 20)]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    chunks = ChunkedArray(tmp_path / "new", 5)

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
        return lambda: chunks.write(chunk, values[chunk.start : chunk.stop])

    compute_missing(chunks, 23, work, "rows", "cpu")
    compute_missing(chunks, 23, work, "rows", "cpu")
    assert done == [range(10, 15)] and torch.equal(Rows(chunks, range(23))[:], values)


# --------------------------------------------------------------------------- samples


def test_a_series_is_what_the_model_draws_by_seed_and_index(tmp_path):
    model, sampler = tiny_model(), Sampler(DDIM(eta=1.0), steps=2)
    series = SampleStore(tmp_path, model, sampler, seed=3, batch_size=5)
    direct = model.sample(12, seed=3, sampler=sampler, batch_size=5)
    series.complete(12)
    assert torch.equal(series.rows(range(12))[:].permute(0, 3, 1, 2), to_uint8(direct))
    torch.testing.assert_close(series.chunk(range(5, 10)), to_uint8(direct[5:10]) / 255)
    assert series.cost(12)[0] == 2 and SampleStore(tmp_path, model).sampler is model.sampler
    for first, calls, seconds, drawn in ((0, 10, 6.0, 5), (5, 20, 12.0, 5), (10, 30, 6.0, 2)):
        series.costs.write(range(first, first + 1), torch.tensor([[calls, seconds, drawn]], dtype=torch.float64))
    assert series.cost(12) == ((5 * 10 + 5 * 20 + 2 * 30) / 12, 12 / 24)
    assert series.cost(3) == (10, 5 / 6), "of the five that were drawn together"


def test_samples_that_are_not_finite_and_samples_without_cost_are_not_kept(tmp_path, monkeypatch):
    series = SampleStore(tmp_path, tiny_model(), batch_size=5)
    with monkeypatch.context() as patch:
        patch.setattr(series, "sampler", lambda *_: torch.full((5, 1, 8, 8), torch.nan))
        patch.setattr(series.model, "trajectory", lambda *_, **__: iter(()))
        with pytest.raises(NonFinite, match="samples 0, 1, 2, 3 and 1 more are not finite; try"):
            series.complete(5)
        assert not list(tmp_path.rglob("*.npy"))

    def killed(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(series.costs, "write", killed)
        with pytest.raises(OSError, match="killed"):
            series.complete(5)
        assert series.samples.missing(5) == [range(5)], "what has no cost is drawn again"


# --------------------------------------------------------------------------- ranks


def test_ranks_share_evenly_and_fail_together(monkeypatch):
    message = []
    monkeypatch.setattr(ranks, "rank_and_world", lambda: (1, 3))
    monkeypatch.setattr(ranks, "gather", lambda value: message.append(value) or [value, None, None])
    assert ranks.shard(range(8)) == range(1, 8, 3)
    with pytest.raises(ValueError, match="mine"), ranks.synchronized():
        raise ValueError("mine")
    assert message == ["ValueError: mine"], "the others hear of it"
    monkeypatch.setattr(ranks, "gather", lambda value: [None, value, "OSError: disk full"])
    with pytest.raises(RuntimeError, match="rank 2 failed: OSError: disk full"), ranks.synchronized():
        pass


# --------------------------------------------------------------------------- points


def test_points_are_scored_by_what_is_known_of_them():
    data = Toy2D(name="two_modes", train_size=4000, held_out_size=2000)
    truth = data.images("train", 1500)
    records = score_points(truth, data)
    assert list(records) == point_names(data, 1500)
    density = records["log_density_1500"]
    assert density["value"] == pytest.approx(data.target.log_density(truth).double().mean().item())
    assert density["real"] == density["value"] and density["better"] == "higher"
    assert records["sliced_wasserstein_1500"]["value"] == records["sliced_wasserstein_1500"]["real"]
    moved = score_points(truth + torch.tensor([3.0, 4.0]), data)
    # The sliced distance of a shift d is |d| / sqrt 2, here with two far modes that stay apart.
    assert moved["sliced_wasserstein_1500"]["value"] == pytest.approx(5 / math.sqrt(2), rel=0.02)
    assert moved["energy_distance_1500"]["value"] > 10 * records["energy_distance_1500"]["value"]
    assert records["mode_weight_error_1500"]["value"] < 0.05
    error = data.target.log_density(truth).double().std().item() / math.sqrt(1500)
    assert density["standard_error"] == pytest.approx(error)


def test_points_stand_beside_as_many_real_ones(tmp_path):
    data = Toy2D(name="two_modes", train_size=900, held_out_size=500)
    drawn, train, held_out = data.target.sample(1400, torch.Generator()), data.images("train"), data.images("held_out")
    record = score_points(drawn[:700] + 1, data)["sliced_wasserstein_700"]
    assert record["value"] == sliced_wasserstein(drawn[:500] + 1, held_out)
    assert record["real"] == sliced_wasserstein(train[:500], held_out) and record["protocol"]["reference_count"] == 500
    lesser = drawn[drawn[:, 0] < 0][:100]  # the mode of weight 1/5
    assert score_points(lesser, data)["mode_weight_error_100"]["value"] == pytest.approx(0.8)
    model = SimpleNamespace(shape=(2,), has_grey_levels=False, is_image=False, sampler=None, guidance=None)
    model.sampled_labels = lambda: None
    series = SampleStore(tmp_path, model, batch_size=300)
    series.complete, series.cost = lambda *_: 0.0, lambda count: (1, 2)
    for chunk in series.samples.ranges(1400):
        series.samples.write(chunk, drawn[chunk.start : chunk.stop])
    both = Evaluator(samples=700, repeats=2).quality(series, data)["log_density_700"]
    density = data.target.log_density(drawn).double()
    assert both["repeats"] == pytest.approx([part.mean().item() for part in density.split(700)])
