"""Distances against closed forms and recorded official values; extractors against their promises."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from diffusion_lab import metric
from diffusion_lab.metric import (
    ClassifierFeatures,
    FeatureMoments,
    InceptionFeatures,
    Moments,
    energy_distance,
    frechet_distance,
    metric_name,
    mode_weights,
    moments,
    sliced_wasserstein,
    to_uint8,
)

torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

CONF = Path(__file__).parent.parent / "conf" / "metric"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


class TestFrechet:
    @pytest.fixture
    def stored(self, recorded):
        return recorded("frechet")

    @pytest.mark.parametrize(
        ("case", "second"), [("commuting", "commuting"), ("general", "general"), ("singular", "commuting")]
    )
    def test_recorded_gaussians(self, stored, case, second):
        a = Moments(stored["commuting.mu1"], stored[f"{case}.s1"], 100)
        b = Moments(stored["commuting.mu2"], stored[f"{second}.s2"], 100)
        expected = stored[f"{case}.fid"].item()
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)

    def test_features_scored_by_the_reference_packages(self, stored):
        value = frechet_distance(moments(stored["features.x"]), moments(stored["features.y"]))
        for package in ("pytorch_fid 0.3.0", "torch_fidelity", "torchmetrics _compute_fid"):
            assert value == pytest.approx(stored.meta["notes"]["packages"][package], abs=1e-6)

    def test_commuting_covariances_in_closed_form(self):
        # Diagonal: sum of (m_a - m_b)^2 + (s_a - s_b)^2, here with one direction of no variance in each.
        s_a, s_b = torch.tensor([1.0, 2.0, 0.0, 3.0]).double(), torch.tensor([2.0, 0.0, 1e-3, 3.0]).double()
        m_a, m_b = torch.zeros(4).double(), torch.tensor([1.0, 0.0, 0.0, -2.0]).double()
        rotation = torch.linalg.qr(normal(4, 4)).Q
        a = Moments(rotation @ m_a, rotation * s_a**2 @ rotation.T, 10)
        b = Moments(rotation @ m_b, rotation * s_b**2 @ rotation.T, 10)
        expected = ((m_a - m_b) ** 2 + (s_a - s_b) ** 2).sum().item()
        assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)

    def test_fewer_samples_than_dimensions(self):
        # tr (S_a^1/2 S_b S_a^1/2)^1/2 is the nuclear norm of X_a X_b^T / n, with no D x D matrix at all.
        x, y = normal(40, 100, seed=1), 2 * normal(30, 100, seed=2) + 0.5
        centred_x, centred_y = x - x.mean(0), y - y.mean(0)
        overlap = torch.linalg.matrix_norm(centred_x @ centred_y.T / math.sqrt(39 * 29), "nuc")
        expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * overlap
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected.item(), rel=1e-12)

    def test_equal_sets_and_collapsed_sets(self):
        x = normal(50, 20)
        same = frechet_distance(moments(x), moments(x))
        assert 0 <= same < 1e-12
        point = torch.ones(50, 20, dtype=torch.float64)
        expected = (x.mean(0) - 1).square().sum().item() + x.var(0).sum().item()
        assert frechet_distance(moments(x), moments(point)) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(moments(point), moments(point)) == 0

    def test_covariance_is_unbiased(self):
        x = normal(7, 3)
        result = moments(x)
        assert result.count == 7
        torch.testing.assert_close(result.covariance, torch.from_numpy(np.cov(x.numpy().T)), rtol=0, atol=1e-14)

    def test_streaming_equals_batch_though_the_mean_is_large(self):
        # Spread 1 around 1e6: sums of squares that are not shifted keep only four digits of this covariance.
        x = normal(1000, 8) + 1e6
        running = FeatureMoments()
        for part in x.split([1, 499, 0, 300, 200]):
            running.update(part)
        result, exact = running.result(), torch.cov((x - 1e6).T)
        torch.testing.assert_close(result.mean, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(result.covariance, exact, rtol=0, atol=1e-9)
        torch.testing.assert_close(moments(x).covariance, exact, rtol=0, atol=1e-9)

    def test_two_merged_accumulators_are_one(self):
        x = normal(300, 5).float()
        whole, left, right = FeatureMoments(), FeatureMoments(), FeatureMoments()
        for part in x.split(50):
            whole.update(part)
        left.update(x[:70])
        right.update(x[70:])
        right = pickle.loads(pickle.dumps(right))  # as it is sent between processes
        left.merge(FeatureMoments())
        merged = FeatureMoments()
        merged.merge(left)
        merged.merge(right)
        assert merged.count == whole.count == 300
        torch.testing.assert_close(merged.result().mean, whole.result().mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(merged.result().covariance, whole.result().covariance, rtol=0, atol=1e-14)

    def test_memory_does_not_grow_with_samples(self):
        running = FeatureMoments()
        for _ in range(3):
            running.update(normal(100, 4))
        assert sum(x.numel() for x in vars(running).values() if isinstance(x, torch.Tensor)) == 4 * 4 + 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="at least 2 samples, got 1"):
            moments(normal(1, 4))
        with pytest.raises(ValueError, match="at least 2 samples, got 0"):
            FeatureMoments().result()
        with pytest.raises(ValueError, match="4 and 5 dimensions"):
            frechet_distance(moments(normal(9, 4)), moments(normal(9, 5)))
        running = FeatureMoments()
        running.update(normal(9, 4))
        with pytest.raises(ValueError, match="3 dimensions after features of 4"):
            running.update(normal(9, 3))
        for bad in (math.nan, math.inf):
            with pytest.raises(ValueError, match="NaN or infinity"):
                running.update(torch.full((2, 4), bad))
        assert running.count == 9
        with pytest.raises(ValueError, match="NaN or infinity"):
            Moments(torch.zeros(2).double(), torch.full((2, 2), math.nan).double(), 5)
        with pytest.raises(ValueError, match="float64"):
            Moments(torch.zeros(2), torch.eye(2), 5)


class TestImages:
    def test_every_byte_survives(self):
        byte = torch.arange(256)
        assert torch.equal(to_uint8(byte / 255), byte.to(torch.uint8))
        assert torch.equal(to_uint8((byte / 255).double()), byte.to(torch.uint8))

    def test_edges_round_to_nearest_and_never_wrap(self):
        images = torch.tensor([-5.0, -0.01, 0.0, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 1.0, 1.01, 9.0])
        assert to_uint8(images).tolist() == [0, 0, 0, 0, 1, 254, 255, 255, 255, 255]

    def test_is_the_rule_of_edm(self):
        images = torch.linspace(-0.1, 1.1, 10007, dtype=torch.float64)
        edm = ((2 * images - 1) * 127.5 + 128).clip(0, 255).to(torch.uint8)
        assert torch.equal(to_uint8(images), edm)

    def test_refusals(self):
        with pytest.raises(ValueError, match="floats"):
            to_uint8(torch.zeros(2, dtype=torch.uint8))
        with pytest.raises(ValueError, match="NaN"):
            to_uint8(torch.tensor([0.5, math.nan]))

    def test_names(self, tmp_path):
        digits = ClassifierFeatures()
        assert [metric_name(digits, n) for n in (1000, 397, 1500, 50000)] == [
            "fd_digits_1k",
            "fd_digits_397",
            "fd_digits_1500",
            "fd_digits_50k",
        ]
        (tmp_path / "weights").touch()
        assert metric_name(InceptionFeatures(str(tmp_path / "weights")), 50000) == "fid_inception_50k"

    def test_nothing_is_a_module(self):
        public = [getattr(metric, name) for name in metric.__all__]
        assert not [x for x in public if isinstance(x, type) and issubclass(x, torch.nn.Module)]


@pytest.mark.parametrize(
    ("option", "extractor"),
    [("digits", ClassifierFeatures), ("inception", InceptionFeatures), ("points", None)],
)
def test_configuration_lists_every_parameter_with_its_default(option, extractor):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    assert set(config) == {"features", "samples"} and config["samples"] >= 1000
    if extractor is None:
        assert config["features"] is None
        return
    defaults = {name: p.default for name, p in inspect.signature(extractor).parameters.items()}
    target = f"diffusion_lab.metric.{extractor.__name__}"
    assert config["features"] == {"_target_": target, **defaults}


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    images = torch.tensor(data.images[order] / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target[order])
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


@pytest.fixture(scope="module")
def fitted(digits):
    features = ClassifierFeatures()
    features.prepare(digits[0], digits[1], "cpu")
    return features


class TestClassifierFeatures:
    def test_shapes_and_whitening(self, fitted, digits):
        features = fitted(digits[0])
        assert features.shape == (1400, 64) and features.dtype == torch.float32
        assert features.mean(0).abs().max() < 1e-5
        variances = torch.linalg.eigvalsh(features.double().T.cov())
        assert variances.max() < 1 + 1e-6 and (variances[-10:] > 0.98).all()
        assert ((variances > 0.5) | (variances < 1e-6)).all()  # a direction is white or it is dead
        assert len(fitted.digest) == 64

    def test_reads_held_out_digits(self, fitted, digits):
        predicted = fitted.predict(digits[2])
        assert predicted.shape == (397,)
        assert (predicted == digits[3]).double().mean() >= 0.97

    def test_every_defect_scores_clearly_worse_than_real_digits(self, fitted, digits):
        train, labels, held_out, _ = digits
        reference = moments(fitted(held_out))

        def distance(images):
            return frechet_distance(moments(fitted(images)), reference)

        images, labels = train[:1000], labels[:1000]
        noise = torch.randn(images.shape, generator=seeded())
        kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
        blurred = F.conv2d(F.pad(images, (1, 1, 1, 1)), torch.outer(kernel, kernel)[None, None])
        classes = [(labels == k).nonzero().flatten() for k in range(10)]
        lopsided = torch.cat([rows[: 40 if k < 5 else 80] for k, rows in enumerate(classes)])
        real = distance(images)
        redrawn = [images[torch.randint(1000, (1000,), generator=seeded(k))] for k in range(5)]
        assert max(map(distance, redrawn)) < 1.35 * real  # chance alone
        assert distance(train[1000:]) < 2 * real  # 400 images: fewer give a higher distance
        assert distance(images + 0.05 * noise) > 4 * real
        assert distance(images + 0.1 * noise) > 2.5 * distance(images + 0.05 * noise)
        assert distance(blurred) > 15 * real
        assert distance(images[lopsided]) > 1.4 * real
        assert distance(images[:20].repeat(50, 1, 1, 1)) > 4 * real
        for k in range(10):
            assert distance(images[labels != k]) > 1.25 * real, f"without class {k}"

    def test_fit_is_the_same_whatever_the_caller_does(self, digits):
        train, labels = digits[:2]
        plain, other = ClassifierFeatures(steps=20), ClassifierFeatures(steps=20)
        plain.prepare(train, labels, "cpu")
        torch.manual_seed(1234)
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                other.prepare(train.clone(), labels.clone(), "cpu")
                features = other(train.clone())
        finally:
            torch.set_default_dtype(default)
        assert torch.equal(features, plain(train))
        assert other.digest == plain.digest
        assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
        seeded_otherwise = ClassifierFeatures(steps=20, seed=1)
        with torch.no_grad():
            seeded_otherwise.prepare(train, labels, "cpu")
        assert seeded_otherwise.digest != plain.digest

    def test_scores_the_bytes_that_are_saved(self, fitted, digits):
        images = digits[2][:10] + 0.001
        saved = to_uint8(images).float() / 255
        assert not torch.equal(images, saved)
        assert torch.equal(fitted(images), fitted(saved))

    def test_colour_images_of_another_size(self):
        labels = torch.arange(300) % 3
        prototypes = torch.rand(3, 3, 12, 10, generator=seeded())
        images = 0.7 * prototypes[labels] + 0.3 * torch.rand(300, 3, 12, 10, generator=seeded(1))
        features = ClassifierFeatures(name="blocks", dimensions=32, steps=100)
        features.prepare(images[:200], labels[:200], "cpu")
        assert features(images).shape == (300, 32)
        assert torch.equal(features.predict(images[200:]), labels[200:])

    def test_refusals(self, fitted):
        images, labels = torch.rand(10, 1, 8, 8), torch.arange(10)
        features = ClassifierFeatures()
        with pytest.raises(RuntimeError, match="prepare"):
            features(images)
        with pytest.raises(ValueError, match="labelled data set"):
            features.prepare(images, None, "cpu")
        with pytest.raises(ValueError, match="labels"):
            features.prepare(images, labels[:5], "cpu")
        for wrong in (labels.float(), labels - 1, torch.zeros_like(labels)):
            with pytest.raises(ValueError, match="two classes"):
                features.prepare(images, wrong, "cpu")
        with pytest.raises(ValueError, match=r"fitted to images \(B, \*\(1, 8, 8\)\)"):
            fitted(torch.rand(2, 3, 8, 8))
        with pytest.raises(ValueError, match="NaN"):
            fitted(torch.full((2, 1, 8, 8), math.nan))
        with pytest.raises(ValueError, match="name"):
            ClassifierFeatures(name="my digits")
        with pytest.raises(ValueError, match="at least 1"):
            ClassifierFeatures(dimensions=0)


class Untrained(torch_fidelity.FeatureExtractorInceptionV3):
    """The architecture with random weights: nothing is read."""

    def load_state_dict(self, *_):
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random Inception weights and its sha256."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # else the signal dies out on its way to the features
    torch.random.set_rng_state(state)
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth", hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestInceptionFeatures:
    def test_equals_the_reference_extractor_on_the_same_weights(self, weights):
        path, digest = weights
        images = 1.2 * torch.rand(4, 3, 20, 24, generator=seeded()) - 0.1
        reference = torch_fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
        (expected,) = reference(((2 * images - 1) * 127.5 + 128).clip(0, 255).to(torch.uint8))
        features = InceptionFeatures(str(path), digest=digest[:12], batch_size=3)
        torch.manual_seed(7)
        before, default = torch.get_rng_state(), torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            features.prepare(None, None, "cpu")
        finally:
            torch.set_default_dtype(default)
        assert torch.equal(torch.get_rng_state(), before)
        assert features.digest == digest
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = features(images)
        assert found.shape == (4, 2048) and found.dtype == torch.float32 and not found.requires_grad
        assert expected.var(dim=0).mean() > 1e-4
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        grey = images[:1, :1]
        assert torch.equal(features(grey), features(grey.repeat(1, 3, 1, 1)))
        with pytest.raises(ValueError, match="1 or 3"):
            features(torch.rand(1, 2, 8, 8))

    def test_convolutions_never_run_in_tf32(self, weights):
        features = InceptionFeatures(str(weights[0]), digest=weights[1])
        features.prepare()
        convolution, seen = torch.backends.cudnn.conv, []
        features._network.register_forward_pre_hook(lambda *_: seen.append(convolution.fp32_precision))
        before = convolution.fp32_precision
        try:
            for chosen in ("tf32", "ieee"):
                convolution.fp32_precision = chosen
                features(torch.rand(1, 3, 8, 8))
                assert convolution.fp32_precision == chosen
        finally:
            convolution.fp32_precision = before
        assert seen == ["ieee", "ieee"]

    def test_missing_file_is_named_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("network"))
        with pytest.raises(FileNotFoundError) as error:
            InceptionFeatures().prepare()
        place = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
        for part in (str(place), "github.com/toshas/torch-fidelity", "sha256 6726825d", "features=null"):
            assert part in str(error.value)
        with pytest.raises(FileNotFoundError, match="elsewhere"):
            InceptionFeatures(str(tmp_path / "elsewhere.pth"), download=True).prepare()

    def test_finds_the_file_where_torch_hub_keeps_it(self, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        place = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
        place.parent.mkdir()
        place.symlink_to(weights[0])
        features = InceptionFeatures(digest=weights[1])
        features.prepare()
        assert features.digest == weights[1]

    def test_downloads_only_when_asked_and_checks_the_digest(self, weights, tmp_path, monkeypatch):
        path, digest = weights
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("diffusion_lab.metric.inception._URL", path.as_uri())
        wrong = InceptionFeatures(download=True)
        with pytest.raises(FileNotFoundError, match="download failed"):
            wrong.prepare()
        assert not any((tmp_path / "checkpoints").iterdir())
        right = InceptionFeatures(download=True, digest=digest)
        assert not any((tmp_path / "checkpoints").iterdir())
        right.prepare()
        assert right.digest == digest

    def test_another_digest_is_refused(self, weights):
        features = InceptionFeatures(str(weights[0]))
        with pytest.raises(ValueError, match=f"sha256 {weights[1]}, not 6726825d"):
            features.prepare()
        with pytest.raises(RuntimeError, match="prepare"):
            features(torch.rand(1, 3, 8, 8))

    def test_a_hostile_file_is_refused_and_never_executed(self, tmp_path):
        path, trap = tmp_path / "hostile.pth", tmp_path / "trap"
        for write in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))):
            write({"fc.bias": Hostile(trap)}, path)
            features = InceptionFeatures(str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
            with pytest.raises(ValueError, match="refused, not executed") as error:
                features.prepare()
            assert "\n" not in str(error.value)
            assert not trap.exists()
            with contextlib.suppress(RuntimeError):
                torch.load(path, weights_only=False)
            trap.rmdir()  # it was there: the trap works

    def test_foreign_weights_are_refused(self, tmp_path):
        for content, message in (
            ({"w": torch.ones(2)}, "another network"),
            ([torch.ones(2)], "no state dict"),
        ):
            path = tmp_path / "foreign.pth"
            torch.save(content, path)
            features = InceptionFeatures(str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
            with pytest.raises(ValueError, match=message):
                features.prepare()

    @pytest.mark.parametrize("digest", ["", "6726", "not-a-digest"])
    def test_a_digest_must_identify_a_file(self, digest):
        with pytest.raises(ValueError, match="8 lower-case hex digits"):
            InceptionFeatures(digest=digest)


class TestTwoSample:
    def test_sliced_wasserstein_of_a_shift_is_exact(self):
        x, shift = normal(500, 2), torch.tensor([1.5, -0.8]).double()
        expected = shift.norm().item() / math.sqrt(2)
        for projections in (2, 64):
            assert sliced_wasserstein(x, x + shift, projections) == pytest.approx(expected, rel=1e-12)
        order = torch.randperm(500, generator=seeded())
        assert sliced_wasserstein(x, x[order]) < 1e-12

    def test_sliced_wasserstein_of_gaussians(self):
        # Along every direction N(0, 1) against N(theta d, 4): W2^2 = (theta d)^2 + 1, on average |d|^2 / 2 + 1.
        shift = torch.tensor([1.0, 2.0]).double()
        x, y = normal(20000, 2, seed=1), 2 * normal(20000, 2, seed=2) + shift
        assert sliced_wasserstein(x, y) ** 2 == pytest.approx(2.5 + 1, rel=0.03)

    def test_one_dimension_by_hand_with_unequal_counts(self):
        # Quantiles of {0, 3}: 0 then 3; of {0, 1, 5}: 0 to 1/3, 1 to 2/3, 5: squared gaps 0, 1 | 4, 4.
        x, y = torch.tensor([[3.0], [0.0]]), torch.tensor([[5.0], [0.0], [1.0]])
        expected = math.sqrt((0 * 2 + 1 * 1 + 4 * 1 + 4 * 2) / 6)
        assert sliced_wasserstein(x, y, 3) == pytest.approx(expected, rel=1e-12)

    def test_directions_are_uniform_and_drawn_from_the_generator(self):
        x, y = normal(50, 2), normal(60, 2, seed=1) * torch.tensor([3.0, 0.2])
        before = torch.get_rng_state()
        assert sliced_wasserstein(x, y, 3) == sliced_wasserstein(x, y, 3)
        assert sliced_wasserstein(x, y, 3, seeded(1)) == sliced_wasserstein(x, y, 3, seeded(1))
        assert sliced_wasserstein(x, y, 3, seeded(1)) != sliced_wasserstein(x, y, 3, seeded(2))
        assert torch.equal(torch.get_rng_state(), before)
        # Two points at distance 1 in 3-D: W2^2 along one direction is cos^2, whose mean over the sphere is 1/3.
        one = torch.tensor([[0.0, 0.0, 1.0]])
        draws = [sliced_wasserstein(0 * one, one, 1, seeded(k)) ** 2 for k in range(500)]
        assert np.mean(draws) == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / 500))

    def test_energy_distance_by_hand(self):
        x, y = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        # 2 (5 + sqrt 13) / 2 - mean of (0, 2, 2, 0) - 0
        assert energy_distance(x, y) == pytest.approx(5 + math.sqrt(13) - 1, rel=1e-12)
        assert energy_distance(x, x) == 0

    def test_energy_distance_of_gaussians(self):
        # X - X' ~ N(0, 2 I): E|X - X'| = sqrt pi; X - Y ~ N(d, 2 I): a Rice mean. Self-pairs add sqrt(pi) (1/N + 1/M).
        n, m, shift = 3000, 2500, 1.3
        x, y = normal(n, 2, seed=1), normal(m, 2, seed=2) + torch.tensor([shift, 0.0])
        z = torch.tensor(shift**2 / 4).double()
        bessel = (1 + z) * torch.special.i0(z / 2) + z * torch.special.i1(z / 2)
        rice = math.sqrt(math.pi) * (torch.exp(-z / 2) * bessel).item()
        expected = 2 * rice - 2 * math.sqrt(math.pi) + math.sqrt(math.pi) * (1 / n + 1 / m)
        assert energy_distance(x, y) == pytest.approx(expected, rel=0.08)
        nothing = energy_distance(x, normal(m, 2, seed=3))
        assert nothing == pytest.approx(math.sqrt(math.pi) * (1 / n + 1 / m), rel=0.8)

    def test_blocks_do_not_change_the_energy_distance(self):
        # Far from the origin, where distances through |x|^2 + |y|^2 - 2 x.y keep few digits.
        x, y = normal(2100, 2, seed=1) + 1e5, normal(1030, 2, seed=2) + 1e5

        def mean(a, b):
            return (a[:, None] - b[None]).norm(dim=-1).mean().item()

        assert energy_distance(x, y) == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), abs=1e-9)

    def test_mode_weights(self):
        modes = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 100.0]])
        points = torch.cat([torch.randn(600, 2) * 0.3 + modes[0], torch.randn(1800, 2) * 0.3 + modes[1]])
        torch.testing.assert_close(mode_weights(points, modes), torch.tensor([0.25, 0.75, 0.0]).double())

    @pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance, mode_weights])
    def test_refusals(self, distance):
        good = torch.zeros(3, 2)
        for bad in (torch.zeros(3, 3), torch.zeros(0, 2), torch.zeros(3)):
            with pytest.raises(ValueError, match="must be"):
                distance(good, bad)
        with pytest.raises(ValueError, match="NaN"):
            distance(good, torch.full((3, 2), math.nan))

    def test_projections_are_counted_from_one(self):
        with pytest.raises(ValueError, match="at least 1"):
            sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), 0)
