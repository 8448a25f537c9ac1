"""torch-fidelity as the referee: from two folders of images to the same numbers as ours, and mistakes in one line."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from diffusion_lab.bench.inception import random_weights
from diffusion_lab.metric import InceptionFeatures, frechet_distance, moments
from diffusion_lab.metric.referee import referee
from diffusion_lab.run import referee as command

COUNT, SUBSET = 24, 20


def drawn(seed: int, shift: float, channels: int = 3) -> torch.Tensor:
    """Smooth coloured images (N, C, 16, 16) in [0, 1], whose bytes are not exact."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(COUNT, channels, 4, 4, generator=generator) ** (1 + shift)
    return torch.nn.functional.interpolate(small, size=16, mode="bilinear")


def saved(folder, images: torch.Tensor):
    """The images as PNG files, rounded by Pillow's own caller: half up."""
    folder.mkdir()
    for k, image in enumerate(images):
        pixels = np.floor(image.permute(1, 2, 0).double().numpy() * 255 + 0.5).astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / f"{k:03}.png")
    return folder


@pytest.fixture(scope="module")
def small():
    """Inception at 75 pixels instead of 299, its least size, in both programs: sixteen times less to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
        patch.setattr("diffusion_lab.metric.inception._SIZE", 75)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    return {"weights": str(path), "digest": random_weights(path)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    real = drawn(1, 0.3)
    return saved(root / "cifar10-train", drawn(0, 0.0)), saved(root / "real", real)


@pytest.fixture(scope="module")
def scores(small, weights, folders):
    return referee(*folders, **weights, batch_size=7, subset_size=SUBSET)


def test_ours_are_the_referees_numbers_from_the_same_images(scores, small, weights):
    extractor = InceptionFeatures(**weights, batch_size=10)
    extractor.prepare()
    features = [extractor(images) for images in (drawn(0, 0.0), drawn(1, 0.3))]
    assert frechet_distance(*map(moments, features)) == pytest.approx(scores["fid"], rel=1e-4)
    assert scores["fid"] > 1
    kernel = kid_features_to_metric(*features, kid_subset_size=SUBSET, verbose=False)
    assert scores["kid"] == pytest.approx(kernel["kernel_inception_distance_mean"], rel=1e-4)
    assert scores["kid_std"] == pytest.approx(kernel["kernel_inception_distance_std"], rel=1e-3)
    classes = isc_features_to_metric(extractor.logits(features[0]))
    assert scores["inception_score"] == pytest.approx(classes["inception_score_mean"], rel=1e-5)
    assert scores["inception_score_std"] == pytest.approx(classes["inception_score_std"], rel=1e-3)
    neighbours = prc_features_to_metric(*features, verbose=False)
    assert {key: scores[key] for key in neighbours} == pytest.approx(neighbours)
    assert scores["precision"] > 0 and 0 < scores["recall"] < 1


def test_arrays_are_read_like_folders(small, weights, folders, tmp_path, monkeypatch):
    def both(**options):
        assert options["cache"] is options["datasets_download"] is False
        return [torch.stack([x[k] for k in range(len(x))]) for x in (options["input1"], options["input2"])]

    read: list[list[torch.Tensor]] = []
    names = [getattr(torch_fidelity, key) for key in dir(torch_fidelity) if key.startswith("KEY_METRIC")]
    found = dict.fromkeys(names, 0)
    monkeypatch.setattr(torch_fidelity, "calculate_metrics", lambda **o: read.append(both(**o)) or found)
    arrays = [np.stack([np.asarray(Image.open(f)) for f in sorted(folder.iterdir())]) for folder in folders]
    np.savez(tmp_path / "a.npz", arr_0=arrays[0], arr_1=np.arange(COUNT))
    np.save(tmp_path / "b.npy", arrays[1])
    grey = saved(tmp_path / "grey", drawn(2, 0.0, channels=1))
    bytes_of_grey = np.stack([np.asarray(Image.open(f)) for f in sorted(grey.iterdir())])[..., None]
    np.save(tmp_path / "grey.npy", bytes_of_grey)
    for pair in (folders, (tmp_path / "a.npz", tmp_path / "b.npy"), (grey, tmp_path / "grey.npy")):
        referee(*pair, **weights, subset_size=SUBSET)
    for folder, array in zip(*read[:2]):
        assert torch.equal(folder, array) and folder.dtype == torch.uint8
    assert torch.equal(read[0][0], torch.from_numpy(arrays[0]).permute(0, 3, 1, 2))
    assert torch.equal(*read[2]) and read[2][0].shape == (COUNT, 3, 16, 16)


def test_the_command_prints_the_numbers(capsys, monkeypatch):
    asked = {}

    def recorded(generated, reference, **options):
        asked.update(options, places=[generated, reference])
        return {"fid": 1.5}

    monkeypatch.setattr("diffusion_lab.metric.referee.referee", recorded)
    command.main(["a", "download=true", "b", "weights=w.pth", "digest=12345678", "batch_size=7", "subset_size=20"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"fid": 1.5} and not captured.err
    expected = {"weights": "w.pth", "digest": "12345678", "download": True, "batch_size": 7, "subset_size": 20}
    assert asked == expected | {"places": ["a", "b"], "device": asked["device"], "progress": False}


def mistakes(root, weights):
    folder = saved(root / "some", drawn(0, 0.0))
    odd = saved(root / "odd", drawn(0, 0.0))
    Image.new("RGB", (9, 16)).save(odd / "zzz.png")
    (root / "empty").mkdir()
    (root / "cut").mkdir()
    (root / "cut" / "a.png").write_bytes(b"\x89PNG")
    alpha = root / "alpha"
    alpha.mkdir()
    Image.new("RGBA", (4, 4)).save(alpha / "a.png")
    np.save(root / "floats.npy", np.zeros((30, 4, 4, 3)))
    (root / "cut.npz").write_bytes(b"PK")
    path, digest = f"weights={weights['weights']}", f"digest={weights['digest']}"
    torch.save({"other": torch.ones(1)}, root / "foreign.pth")
    foreign = hashlib.sha256((root / "foreign.pth").read_bytes()).hexdigest()
    return [
        ([folder], "two sets of images"),
        ([folder, folder, "subsets=3"], "unknown option subsets; allowed: weights=..."),
        ([folder, folder, "batch_size=many"], "batch_size=many is not valid"),
        ([folder, folder, "device=tpu"], "device=tpu"),
        ([folder, root / "absent", path, digest], "absent does not exist"),
        ([folder, root / "empty", path, digest], "holds no PNG images"),
        ([folder, root / "cut", path, digest], "a.png is not an image or is truncated"),
        ([folder, odd, path, digest], "zzz.png is 9x16 RGB: images of one size are needed, 16x16"),
        ([folder, alpha, path, digest], "without transparency"),
        ([folder, root / "floats.npy", path, digest], "must hold bytes"),
        ([folder, root / "cut.npz", path, digest], "is truncated"),
        ([folder, folder, path, digest], "holds 24 images: KID's subsets need 1000"),
        ([folder, folder, "subset_size=9", "weights=absent.pth"], "weights absent.pth are missing"),
        ([folder, folder, "subset_size=9", path], "has sha256"),
        ([folder, folder, "subset_size=9", f"weights={root}/foreign.pth", f"digest={foreign}"], "of another network"),
    ]


def test_every_mistake_is_one_line_and_nothing_is_fetched(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("network"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for arguments, message in mistakes(tmp_path, weights):
        with pytest.raises(SystemExit) as stopped:
            command.main([*map(str, arguments)])
        line = capsys.readouterr().err
        assert stopped.value.code == 2 and message in line and line.count("\n") == 1, line
