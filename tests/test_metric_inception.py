"""Inception's features beside torch-fidelity's own on the same weights, and a weight file that nobody trusts."""

from __future__ import annotations

import contextlib
import hashlib
import pickle

import pytest
import torch
from hostile import Hostile
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from diffusion_lab.bench.inception import random_weights
from diffusion_lab.metric import InceptionFeatures
from diffusion_lab.metric.features import full_precision
from diffusion_lab.metric.resize import resize_tensorflow1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random Inception weights and its sha256."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    return path, random_weights(path)


@pytest.fixture(scope="module")
def loaded(weights):
    features = InceptionFeatures(str(weights[0]), digest=weights[1][:12], batch_size=3)
    torch.manual_seed(7)
    before, default = torch.get_rng_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        features.prepare(None, None, "cpu")
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(torch.get_rng_state(), before)
    return features


class TestResize:
    @pytest.mark.parametrize("shape", [(32, 32), (20, 24), (1, 7), (299, 299), (310, 400), (600, 301)])
    def test_is_torch_fidelitys(self, shape):
        images = 255 * torch.rand(2, 3, *shape, generator=seeded())
        expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        found = resize_tensorflow1(images, 299)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # of 255
        assert found.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize(("height", "width"), [(8, 50), (400, 310)])
    def test_a_ramp_shows_the_positions(self, height, width):
        # Pixel (i, j) of the ramp 1000 i + j is read at (i H / 299, j W / 299), held at the last pixel's edge.
        y, x = torch.arange(height).double()[:, None], torch.arange(width).double()
        place = torch.arange(299).double() / 299
        expected = 1000 * (height * place).clamp(max=height - 1)[:, None] + (width * place).clamp(max=width - 1)
        found = resize_tensorflow1((1000 * y + x).float()[None, None], 299)[0, 0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-3)


class TestFeatures:
    def test_equal_the_reference_extractor_on_the_same_weights(self, weights, loaded):
        path, digest = weights
        reference = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        assert loaded.digest == digest and loaded.dimensions == 2048
        for shape in ((4, 3, 20, 24), (1, 3, 320, 310)):
            images = 1.2 * torch.rand(shape, generator=seeded()) - 0.1
            pixels = ((2 * images - 1) * 127.5 + 128).clip(0, 255).to(torch.uint8)
            expected, scores = reference(pixels)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = loaded(images)
                logits = loaded.logits(found)
            assert found.shape == (len(images), 2048) and found.dtype == torch.float32 and not found.requires_grad
            error = (found - expected).norm(dim=1) / expected.norm(dim=1)
            assert error.max() < 1e-6
            assert logits.shape == (len(images), loaded.classes) and logits.dtype == torch.float32
            assert ((logits - scores).norm(dim=1) / scores.norm(dim=1)).max() < 1e-6
            assert len(images) == 1 or expected.var(dim=0).mean() > 1e-4  # they do tell images apart

    def test_grey_is_repeated(self, loaded):
        grey = torch.rand(1, 1, 9, 9, generator=seeded())
        assert torch.equal(loaded(grey), loaded(grey.repeat(1, 3, 1, 1)))
        with pytest.raises(ValueError, match="1 or 3"):
            loaded(torch.rand(1, 2, 8, 8))

    def test_products_never_run_in_less_than_float32(self, loaded):
        backends, seen = torch.backends, []
        products = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
        hook = loaded._trunk.register_forward_pre_hook(lambda *_: seen.append([p.fp32_precision for p in products]))
        before = [p.fp32_precision for p in products]
        try:
            torch.set_float32_matmul_precision("medium")
            chosen = [p.fp32_precision for p in products]
            assert "bf16" in chosen
            loaded(torch.rand(1, 3, 8, 8))
            assert [p.fp32_precision for p in products] == chosen
            assert torch.get_float32_matmul_precision() == "medium"
            with pytest.raises(KeyError), full_precision(torch.device("cpu")):
                assert not torch.is_grad_enabled()
                raise KeyError
            assert [p.fp32_precision for p in products] == chosen
        finally:
            hook.remove()
            torch.set_float32_matmul_precision("highest")
            for product, precision in zip(products, before):
                product.fp32_precision = precision
        assert seen == [["ieee"] * 4]

    def test_protocol_names_what_changes_them(self, weights, loaded):
        with pytest.raises(RuntimeError, match="prepare"):
            InceptionFeatures(str(weights[0])).protocol()
        assert loaded.protocol() == {
            "extractor": "inception",
            "digest": weights[1],
            "dimensions": 2048,
            "quantisation": "bytes, floor(255 x + 1/2)",
            "resize": "bilinear of TensorFlow 1 to 299",
            "precision": "float32",
        }


class TestWeights:
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
        for use in (features, features.logits):
            with pytest.raises(RuntimeError, match="prepare"):
                use(torch.rand(1, 3, 8, 8))

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

    @pytest.mark.parametrize(
        ("content", "message"),
        [({"w": torch.ones(2)}, "another network"), ([torch.ones(2)], "does not hold a state dict")],
    )
    def test_foreign_weights_are_refused(self, content, message, tmp_path):
        path = tmp_path / "foreign.pth"
        torch.save(content, path)
        features = InceptionFeatures(str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(ValueError, match=message):
            features.prepare()

    @pytest.mark.parametrize("digest", ["", "6726", "not-a-digest"])
    def test_a_digest_must_identify_a_file(self, digest):
        with pytest.raises(ValueError, match="8 lower-case hex digits"):
            InceptionFeatures(digest=digest)
