"""What an evaluation says: references and their protocol, likelihood of a whole set, names known beforehand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_job import evaluator, tiny_model

from diffusion_lab.data import DataModule, Digits
from diffusion_lab.data.base import Splits
from diffusion_lab.evaluation import MEASURES, Evaluator, reference
from diffusion_lab.evaluation.likelihood import likelihood_name, score_likelihood, summary
from diffusion_lab.evaluation.scorer import Features, Reference, Scorer, chart_name, repeated, with_real
from diffusion_lab.evaluation.toy2d import point_names, score_points
from diffusion_lab.likelihood import FlowLikelihood, VariationalBound, bits_per_dim
from diffusion_lab.metric import Statistics, kernel_distance, moments, neighbour_scores
from diffusion_lab.noise import image_generators


class Means:
    """Features that can be computed by hand: mean and first pixel, and the classes 'dark' and 'bright'."""

    name, short, learned, dimensions, classes, digest = "means", "fd", False, 2, 2, "0" * 64

    def __init__(self, rule: str = "mean, first") -> None:
        self.rule, self.calls = rule, 0

    def prepare(self, *_):
        pass

    def __call__(self, images):
        self.calls += len(images)
        return torch.stack([images.flatten(1).mean(1), images[:, 0, 0, 0]], 1)

    def logits(self, features):
        return torch.stack([0.25 - features[:, 0], features[:, 0] - 0.25], 1) * 1e3

    def protocol(self):
        return {"extractor": self.name, "digest": self.digest, "rule": self.rule}


def changed(data: Digits) -> Digits:
    """The same data with one grey level of one training image changed."""
    part = data.splits.train
    part.x = part.x.clone()
    part.x[3, 0, 2, 2] = (part.x[3, 0, 2, 2] + 1) % 17
    return data


# --------------------------------------------------------------------------- references


def test_statistics_are_those_of_the_split_and_measured_once(tmp_path):
    data, extractor = Digits(), Means()
    path = reference.measure(data, "train", extractor, "cpu", tmp_path, batch_size=99)
    assert extractor.calls == 1400
    found, direct = Statistics.load(path), moments(Means()(data.images("train")))
    torch.testing.assert_close(found.moments.mean, direct.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.moments.covariance, direct.covariance, rtol=1e-9, atol=1e-12)
    assert found.protocol["reference"] == "digits train" and found.protocol["reference_count"] == 1400
    assert reference.measure(Digits(), "train", extractor, "cpu", tmp_path) == path and extractor.calls == 1400
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing else stays"
    words = {key: found.protocol[key] for key in ("reference", "reference_count", "reference_digest")}
    assert reference.load(path, extractor).protocol == words and len(found.features) == 1400


def test_statistics_keep_some_rows_and_count_no_more_than_there_are(tmp_path, monkeypatch):
    whole = reference.measure(Digits(), "held_out", Means(), "cpu", tmp_path, count=10_000)
    assert Statistics.load(whole).protocol["reference_count"] == 397
    monkeypatch.setattr(reference, "KEPT", 50)
    fewer = reference.measure(Digits(), "held_out", Means(), "cpu", tmp_path)
    assert torch.equal(Statistics.load(fewer).features, Means()(Digits().images("held_out"))[:50]) and fewer != whole


@pytest.mark.parametrize("other", [
    lambda: (changed(Digits()), "train", Means(), None), lambda: (Digits(), "held_out", Means(), None),
    lambda: (Digits(), "train", Means("another rule"), None), lambda: (Digits(), "train", Means(), 700),
])  # fmt: skip
def test_statistics_of_anything_else_are_measured_anew(tmp_path, other):
    data, split, extractor, count = other()
    first = reference.measure(Digits(), "train", Means(), "cpu", tmp_path)
    second = reference.measure(data, split, extractor, "cpu", tmp_path, count)
    assert first != second and extractor.calls == (count or data.size(split))


def test_a_reference_of_another_protocol_is_refused_and_says_in_what(tmp_path):
    path = reference.measure(Digits(), "train", Means(), "cpu", tmp_path)
    with pytest.raises(ValueError, match="rule mean, first there, mean here"):
        reference.load(path, Means("mean"))
    judge = Evaluator(Means("mean"), reference=str(path))
    with pytest.raises(ValueError, match="another protocol"):
        judge.prepare(Digits(), torch.device("cpu"))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"3 dimensions.*means features have 2"):
        reference.load(tmp_path / "wide.npz", Means())


def test_a_file_of_another_program_serves_what_it_can(tmp_path):
    np.savez(tmp_path / "cifar10-stats.v2.npz", mu=np.array([0.3, 0.1]), sigma=np.eye(2))
    found = reference.load(tmp_path / "cifar10-stats.v2.npz", Means())
    assert found.name == "cifar10_stats_v2" and found.protocol["reference_protocol"] == "not recorded"
    judge = Scorer(Means(), found, ("frechet", "kernel", "inception_score", "neighbours"))
    records = judge(Features.of(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()))
    assert list(records) == ["fd_means_cifar10_stats_v2_40", "inception_score_means_40"] == judge.names(40)
    asked = Evaluator(Means(), samples=40, reference=str(tmp_path / "cifar10-stats.v2.npz"), measures=list(MEASURES))
    assert [reason.split(",")[0] for reason in asked.left_out(Digits())] == [
        "frechet_infinity needs 1000 samples",
        "kernel needs features besides mu and sigma",
        "neighbours needs features besides mu and sigma",
    ]


def test_references_and_measures_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"metric.reference=test must be train, held_out or a .npz"):
        Evaluator(Means(), reference="test")
    with pytest.raises(ValueError, match="at least 2"):
        Evaluator(Means(), samples=1)
    with pytest.raises(ValueError, match="a list whose elements are one of frechet, kernel"):
        Evaluator(Means(), measures=["fid"])
    with pytest.raises(ValueError, match=r"nowhere.npz does not exist"):
        Evaluator(Means(), reference="nowhere.npz").prepare(Digits(), torch.device("cpu"))


# --------------------------------------------------------------------------- quality


def test_every_measure_of_equal_sets_is_that_of_equal_sets():
    rows = (torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.25).double()
    against = Reference("train", Statistics(moments(rows), rows), {"reference": "itself"})
    records = Scorer(Means(), against, ("frechet", "kernel", "inception_score", "neighbours"))(Features.of(rows))
    values = {name: record["value"] for name, record in records.items()}
    assert values["fd_means_train_60"] == pytest.approx(0, abs=1e-9)
    # One subset of all rows on both sides: minus twice the mean of k(x, x) - k(x, y) over the diagonal.
    kernel = (rows @ rows.T / 2 + 1) ** 3
    off = kernel.sum() - kernel.trace()
    assert values["kd_means_train_60"] == pytest.approx((2 * off / (60 * 59) - 2 * kernel.mean()).item(), rel=1e-9)
    assert values["precision_means_train_60"] == values["recall_means_train_60"] == 1
    assert values["coverage_means_train_60"] == 1 and values["density_means_train_60"] > 1
    bright = (rows[:, 0] > 0.25).double().mean().item()
    assert records["fd_means_train_60"]["classes"] == {"0": round(60 * (1 - bright)), "1": round(60 * bright)}
    assert 1 < values["inception_score_means_60"] <= 2
    protocol = records["kd_means_train_60"]["protocol"]
    assert protocol["rule"] == "mean, first" and protocol["reference"] == "itself" and protocol["subset_size"] == 60
    assert "reference" not in records["inception_score_means_60"]["protocol"]


def test_measures_are_taken_as_their_protocol_says():
    draw = torch.Generator().manual_seed(2)
    real, fake = (torch.rand(n, 2, generator=draw) * 0.3 + shift for n, shift in ((50, 0.0), (40, 0.1)))
    against = Reference("train", Statistics(moments(real), real), {})
    records = Scorer(Means(), against, ("kernel", "neighbours"), neighbours=30)(Features.of(fake))
    near = neighbour_scores(fake[:30], real[:30], 3, 5)
    wanted = {f"{k}_means_train_30": getattr(near, k) for k in ("precision", "recall", "density", "coverage")}
    wanted = {"kd_means_train_40": kernel_distance(fake, real, 100, 40).value, **wanted}
    assert {name: record["value"] for name, record in records.items()} == wanted
    assert [record["better"] for record in records.values()] == ["lower"] + ["higher"] * 4
    few = Reference("train", Statistics(moments(real), real[:20]), {})
    (record,) = Scorer(Means(), few, ("kernel",))(Features.of(fake)).values()
    assert record["protocol"]["subset_size"] == 20 and Features.of(fake.repeat(60, 1)).moments.count == 2400


def test_repeats_give_mean_minimum_and_all():
    runs = [{"a": {"value": v, "better": "lower", "protocol": {"samples": 5}}} for v in (3.0, 1.0, 2.0)]
    record = repeated(runs)["a"]
    assert (record["value"], record["min"], record["max"], record["repeats"]) == (2.0, 1.0, 3.0, [3.0, 1.0, 2.0])
    assert record["protocol"] == {"samples": 5, "repeats": 3} and repeated(runs[:1]) == runs[0]


def test_real_images_stand_beside_samples_whatever_their_number():
    records = {"fd_x_train_50k": {"value": 3.0}, "fd_x_train_infinity": {"value": 2.0, "extrapolated": True}}
    real = {"fd_x_train_10k": {"value": 1.0, "protocol": {"samples": 10_000}}}
    joined = with_real(records, real)
    assert joined["fd_x_train_50k"] == {"value": 3.0, "real": 1.0, "real_images": 10_000}
    assert joined["fd_x_train_infinity"] == {"value": 2.0, "extrapolated": True}


# --------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("name", ["bound", "flow"])
def test_bits_per_dim_count_every_item_once_and_every_repeat(tmp_path, name):
    model, data, count = tiny_model().train(), Digits(), 7
    records = score_likelihood(model, name, data, tmp_path, count, repeats=2, batch_size=3, seed=5)
    record = records[f"{name}_bits_per_dim"]
    assert model.training
    model.eval()  # as it has to be measured: this network has dropout
    x = model.encode(data.images("held_out", count))
    nats = []
    for first in range(0, 2 * count, 3):  # row r is item r modulo 7; an adaptive solver's steps are those of its batch
        rows = range(first, min(first + 3, 2 * count))
        items = x[[row % count for row in rows]]
        nats.append(model.likelihood[name](model.denoiser, items, 17, image_generators(5, rows)).log_likelihood)
    bits = bits_per_dim(torch.cat(nats).double(), 64).reshape(2, count)
    assert record["value"] == pytest.approx(bits.mean().item(), rel=1e-12)
    assert record["repeats"] == pytest.approx(bits.mean(1).tolist())
    assert record["standard_error"] == pytest.approx(bits.mean(0).std().item() / math.sqrt(count))
    assert record["repeats"][0] != record["repeats"][1], "each repeat has noise of its own"
    assert record["value"] == pytest.approx(sum(record["terms"].values()))
    assert record["protocol"]["count"] == count and record["protocol"]["repeats"] == 2
    assert name == "flow" or record["nfe"] == 3 + 1  # terms, decoder


def test_the_whole_held_out_set_is_measured_and_another_setting_anew(tmp_path):
    model, data = tiny_model(), Digits()
    model.likelihood = {"bound": VariationalBound(terms=1)}
    judge = evaluator(tmp_path, likelihood_samples=None, likelihood_repeats=1, likelihood_batch_size=100, seed=0)
    record = judge.likelihood(model, data, tmp_path)["bound_bits_per_dim"]
    assert record["protocol"]["count"] == 397
    files = sorted((tmp_path).rglob("*.npy"))
    assert [len(np.load(f)) for f in files] == [100, 100, 100, 97]
    score_likelihood(model, "bound", data, tmp_path, batch_size=100)
    assert sorted(tmp_path.rglob("*.npy")) == files
    model.likelihood = {"bound": VariationalBound(terms=2)}
    score_likelihood(model, "bound", data, tmp_path, batch_size=100)
    score_likelihood(model, "bound", data, tmp_path, batch_size=100, seed=1)
    assert len(list(tmp_path.rglob("*.npy"))) == 12
    data.splits.held_out.x = 16 - data.splits.held_out.x
    data._fingerprints.clear()
    score_likelihood(model, "bound", data, tmp_path, batch_size=100)
    assert len(list(tmp_path.rglob("*.npy"))) == 16


@pytest.mark.parametrize(
    "shape, grey_levels, name, factor",
    [
        ((1, 8, 8), 17, "bound_bits_per_dim", 1 / (64 * math.log(2))),
        ((4, 8, 8), None, "bound_nats_per_dim", 1 / 256),
        ((2,), None, "bound_nats", 1),
    ],
)
def test_likelihoods_have_the_unit_that_makes_sense(shape, grey_levels, name, factor):
    model = SimpleNamespace(
        shape=shape, grey_levels=grey_levels, is_image=len(shape) == 3, guidance=None,
        likelihood={"bound": VariationalBound(terms=1)},
    )  # fmt: skip
    rows = torch.tensor([[60.0, 10.0, 20.0, 30.0, 1.0], [120.0, 20.0, 40.0, 60.0, 1.0]], dtype=torch.float64)
    assert likelihood_name(model, "bound") == name
    model.likelihood["flow"] = FlowLikelihood(dequantizations=20)
    if grey_levels is not None:
        assert likelihood_name(model, "flow") == "flow_bits_per_dim_k20"
    assert summary(model, "bound", rows, 1)["value"] == pytest.approx(90 * factor)


def test_the_error_of_a_likelihood_covers_that_of_all_items():
    """Of normal items with mean 5: 19 of 20 intervals of two errors hold it, whatever the number of passes."""
    model = SimpleNamespace(
        shape=(2,), grey_levels=None, is_image=False, likelihood={"bound": VariationalBound(terms=1)}, guidance=None
    )
    source, covered = torch.Generator().manual_seed(0), []
    for _ in range(300):
        of_items = 5 + torch.randn(40, generator=source, dtype=torch.float64)
        passes = of_items + 0.5 * torch.randn(3, 40, generator=source, dtype=torch.float64)
        rows = torch.cat([passes.reshape(-1, 1), torch.zeros(120, 4)], 1)
        record = summary(model, "bound", rows, 3)
        covered.append(abs(record["value"] - 5) < 2 * record["standard_error"])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


# --------------------------------------------------------------------------- what the data cannot serve


def small(train: int, held_out: int) -> Digits:
    """Digits with only the first items of each split."""
    data = Digits()
    for split, size in (("train", train), ("held_out", held_out)):
        part = getattr(data.splits, split)
        part.x, part.labels = part.x[:size], part.labels[:size]
    return data


@pytest.mark.parametrize(
    "held_out, missing, left",
    [
        (5, ["neighbours needs 6 reference images"], {"fd", "kd", "inception"}),
        (1, ["frechet needs 2 reference", "kernel needs 2 reference", "neighbours needs 6"], {"inception"}),
        (6, [], {"fd", "kd", "inception", "precision", "recall", "density", "coverage"}),
    ],
)
def test_measures_that_the_reference_cannot_serve_are_left_out_beforehand(tmp_path, held_out, missing, left):
    model, data = tiny_model(), small(40, held_out)
    judge = evaluator(tmp_path, samples=8, repeats=1, likelihood_samples=0)
    judge.prepare(data, torch.device("cpu"))
    reasons = judge.left_out(data, likelihood=True)
    assert len(reasons) == len(missing) and all(r.startswith(m) for r, m in zip(reasons, missing, strict=True))
    names = judge.names(model, data)
    assert {name.partition("_")[0] for name in names} == left
    assert names == list(judge(model, data, tmp_path / "work"))


def test_a_training_set_of_one_and_a_held_out_set_of_none_are_no_obstacle(tmp_path):
    model, data = tiny_model(), small(40, 0)
    judge = evaluator(tmp_path, samples=8, repeats=1, reference="train", likelihood_samples=None)
    judge.prepare(data, torch.device("cpu"))
    assert judge.left_out(data, likelihood=True) == ["the likelihood needs held-out items, and there are none"]
    records = judge(model, data, tmp_path / "work")
    assert records["fd_digits_train_8"].get("real") is None and "bound_bits_per_dim" not in records


def test_a_file_with_few_rows_of_features_serves_what_needs_none(tmp_path):
    rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    Statistics(moments(rows), rows[:4], {}).save(tmp_path / "few.npz")
    judge = Scorer(Means(), reference.load(tmp_path / "few.npz", Means()), ("frechet", "neighbours"))
    assert judge.obstacle("neighbours", 40) == "neighbours needs features of 6 reference images, there are 4"
    assert list(judge(Features.of(rows + 1))) == ["fd_means_few_50"]


def test_few_samples_for_many_dimensions_are_told(tmp_path):
    judge = evaluator(tmp_path, samples=40)
    judge.prepare(small(100, 30), torch.device("cpu"))
    message = judge.warnings(small(100, 30))
    assert [line.partition(":")[0] for line in message] == [
        "40 samples for 64 dimensions",
        "30 reference images for 64 dimensions",
    ]
    judge.measures = ["kernel"]
    assert judge.warnings(small(100, 30)) == []


def test_an_extractor_that_cannot_take_the_images_is_refused_before_anything_is_drawn(tmp_path):
    class Grey(Means):
        def __call__(self, images):
            raise ValueError("images must have 3 channels")

    with pytest.raises(ValueError, match="means features do not support 1x8x8 images .images must have 3 channels"):
        Evaluator(Grey(), cache=str(tmp_path)).prepare(Digits(), torch.device("cpu"))


class Fields(DataModule):
    """Arrays of four channels, far from [0, 1]."""

    grey_levels = None

    def load(self) -> Splits:
        x = 30 * torch.randn(60, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        return Splits(Arrays(x[:40]), Arrays(x[40:]), "as given")


class Arrays(torch.utils.data.Dataset):
    """Numbers as they are."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.labels = x, torch.zeros(len(x), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices):
        return self.x[indices], self.labels[indices]

    def digest(self) -> bytes:
        return self.x.numpy().tobytes()


def test_what_has_no_grey_levels_is_scored_by_distances(tmp_path):
    data = Fields(shape=(4, 4, 4), grey_levels=None, flip=False)
    judge = evaluator(tmp_path, samples=30)
    judge.prepare(data, torch.device("cpu"))
    assert judge.features is None and judge.scores_samples(data)
    assert judge.left_out(data) == ["digits features need images, and Fields has no grey levels: distances are used"]
    plan = judge.plan(SimpleNamespace(likelihood={}), data)
    assert plan == "2 x 30 samples against held_out (distances)"
    # Of a shift d in D dimensions the squared sliced distance is |d|^2 / D.
    same, moved = (score_points(data.images("held_out") + shift, data) for shift in (0, 16))
    assert list(same) == point_names(data, 20) == ["sliced_wasserstein_20", "energy_distance_20"]
    assert same["sliced_wasserstein_20"]["value"] == 0 and same["sliced_wasserstein_20"]["real"] > 0
    assert moved["sliced_wasserstein_20"]["value"] == pytest.approx(16, rel=1e-6)
    assert same["energy_distance_20"]["value"] == 0 < moved["energy_distance_20"]["value"]


def test_images_of_many_channels_are_scored_by_distances_where_no_features_are_asked_for():
    def of(*shape, held_out=9):
        return SimpleNamespace(shape=shape, grey_levels=256, size=lambda split: held_out)

    assert Evaluator().scores_samples(of(5, 8, 8)) and not Evaluator().scores_samples(of(3, 8, 8))
    assert not Evaluator().scores_samples(of(5, 8, 8, held_out=0)), "there is nothing to be near to"
    stored = torch.arange(2 * 8 * 8 * 5).reshape(2, 8, 8, 5).to(torch.uint8)
    judge = Evaluator(samples=2)
    judge.spans = lambda store: [stored]
    (images,) = judge.points(SimpleNamespace(images=True, samples=None))
    assert images.shape == (2, 5, 8, 8) and images[1, 3, 2, 7] == stored[1, 2, 7, 3] / 255


# --------------------------------------------------------------------------- names and records


def test_names_are_known_before_anything_is_measured(tmp_path):
    model, data, judge = tiny_model(), Digits(), evaluator(tmp_path, samples=8, neighbours=6, likelihood_samples=2)
    judge.prepare(data, torch.device("cpu"))
    names = judge.names(model, data)
    assert names == list(judge(model, data, tmp_path / "work")) and "coverage_digits_held_out_6" in names
    assert evaluator(tmp_path, samples=4, likelihood_samples=0, measures=["neighbours"]).names(model, data) == []


@pytest.mark.parametrize(
    "name, chart",
    [
        ("fid_inception_train_50k", "fid"),
        ("raw_fd_digits_held_out_1k", "raw_fd"),
        ("fid_inception_train_infinity", "fid_infinity"),
        ("inception_score_digits_1k", "inception_score"),
        ("coverage_digits_my_file_397", "coverage"),
        ("sliced_wasserstein_10k", "sliced_wasserstein"),
        ("flow_bits_per_dim", "flow_bits_per_dim"),
        ("raw_bound_nats_per_dim", "raw_bound_nats_per_dim"),
    ],
)
def test_a_metric_has_one_chart_whatever_it_is_measured_with(name, chart):
    assert chart_name(name) == chart


def test_records_are_plain_json(tmp_path):
    model, data = tiny_model(), Digits()
    judge = evaluator(tmp_path, samples=8, repeats=1, likelihood_samples=2, likelihood_repeats=1)
    judge.prepare(data, torch.device("cpu"))
    records = judge(model, data, tmp_path / "work")
    assert json.loads(json.dumps(records)) == records
    assert isinstance(records["fd_digits_held_out_8"]["real"], float)
    judge.features, judge.likelihood_samples = Means(), 0  # the same samples in other features
    assert "fd_means_held_out_8" in judge(model, data, tmp_path / "work")
