"""The classifier that judges small labelled images: what it sees, and that nothing moves it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion_lab.metric import ClassifierFeatures, frechet_distance, moments, to_uint8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
        plain, other = (ClassifierFeatures(steps=20, cache=False) for _ in range(2))
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
        seeded_otherwise = ClassifierFeatures(steps=20, seed=1, cache=False)
        with torch.no_grad():
            seeded_otherwise.prepare(train, labels, "cpu")
        assert seeded_otherwise.digest != plain.digest

    def test_a_machine_trains_it_once(self, digits, tmp_path, monkeypatch):
        trained = []
        fit = ClassifierFeatures._fit
        monkeypatch.setattr(ClassifierFeatures, "_fit", lambda self, *data: trained.append(1) or fit(self, *data))

        def digest(images, cache=tmp_path / "cache", **settings):
            monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(cache))
            features = ClassifierFeatures(**{"steps": 5, **settings})
            features.prepare(images, digits[1])
            return features.digest

        first = digest(digits[0])
        assert digest(digits[0]) == first and len(trained) == 1
        assert len({first, digest(digits[0].flip(0)), digest(digits[0], seed=1), digest(digits[0], steps=6)}) == 4
        files = list((tmp_path / "cache").rglob("*.pt"))
        assert len(trained) == len(files) == 4
        for file in files:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        assert digest(digits[0]) == first and len(trained) == 5
        (tmp_path / "file").touch()
        assert digest(digits[0], tmp_path / "file") == first  # no directory: it is not kept

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

    def test_class_scores_come_out_of_the_whitened_features(self, fitted, digits):
        images, labels = digits[2:]
        x = to_uint8(images).flatten(1).double() / 255
        for k in range(0, len(fitted._layers), 2):  # the whole perceptron on the pixels, in one go
            x = (x.relu() if k else x) @ fitted._layers[k].T + fitted._layers[k + 1]
        assert fitted.classes == 10 and x.shape == (397, 11)
        features = fitted(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = fitted.logits(features)
        assert scores.shape == (397, 10) and scores.dtype == torch.float32 and not scores.requires_grad
        torch.testing.assert_close(scores.double(), x[:, :10], rtol=0, atol=1e-4)
        assert torch.equal(scores.argmax(1), fitted.predict(images))
        assert (scores.argmax(1) == labels).double().mean() >= 0.97

    def test_protocol_names_what_changes_them(self, fitted, digits):
        assert fitted.protocol() == {
            "extractor": "digits",
            "digest": fitted.digest,
            "dimensions": 64,
            "quantisation": "bytes, floor(255 x + 1/2)",
            "resize": "none",
            "precision": "float64",
        }

    def test_refusals(self, fitted):
        images, labels = torch.rand(10, 1, 8, 8), torch.arange(10)
        features = ClassifierFeatures()
        for use in (features, features.logits, lambda _: features.protocol()):
            with pytest.raises(RuntimeError, match="prepare"):
                use(images)
        with pytest.raises(ValueError, match="labelled data set"):
            features.prepare(images, None, "cpu")
        with pytest.raises(ValueError, match="labels"):
            features.prepare(images, labels[:5], "cpu")
        for wrong in (labels.float(), labels - 1, torch.zeros_like(labels)):
            with pytest.raises(ValueError, match="two classes"):
                features.prepare(images, wrong, "cpu")
        with pytest.raises(ValueError, match=r"trained on images \(B, \*\(1, 8, 8\)\)"):
            fitted(torch.rand(2, 3, 8, 8))
        with pytest.raises(ValueError, match="NaN"):
            fitted(torch.full((2, 1, 8, 8), math.nan))
        with pytest.raises(ValueError, match="name"):
            ClassifierFeatures(name="my digits")
        with pytest.raises(ValueError, match="at least 1"):
            ClassifierFeatures(dimensions=0)
