"""What every extractor keeps to, and any network as an extractor: its images, its weights, its way from the configuration."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Hostile
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from diffusion_lab import metric
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.errors import ConfigError
from diffusion_lab.metric import ClassifierFeatures, InceptionFeatures, NetworkFeatures, to_uint8

CONF = Path(__file__).parent.parent / "conf" / "metric"
EXTRACTORS = {"digits": ClassifierFeatures, "inception": InceptionFeatures, "network": NetworkFeatures}
ODD = {"dict": lambda x: {"features": x}, r"\(2,\)": lambda x: x.mean((1, 2, 3)), r"\(1, 3, 8, 8\)": lambda x: x[:1]}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ready(network: nn.Module, **options) -> NetworkFeatures:
    features = NetworkFeatures(network, **{"name": "own", "size": 8, "mean": MEAN, "std": STD} | options)
    features.prepare()
    return features


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def convolutions(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())


def test_nothing_is_a_module():
    public = [getattr(metric, name) for name in metric.__all__]
    assert not [x for x in public if isinstance(x, type) and issubclass(x, nn.Module)]
    features = ready(nn.Flatten())
    model = nn.Module()
    model.features = features  # as an attribute of a Model, too, it stays out of the state dict
    assert not list(model.modules())[1:]


@pytest.mark.parametrize("extractor", EXTRACTORS.values())
def test_every_extractor_has_what_its_users_ask_for(extractor):
    asked = {"name", "short", "dimensions", "classes", "digest", "learned", "prepare", "__call__", "logits", "protocol"}
    made = extractor(**({"network": nn.Flatten(), "name": "own"} if extractor is NetworkFeatures else {}))
    assert not [word for word in asked if not hasattr(made, word)]


@pytest.mark.parametrize(("option", "extractor"), EXTRACTORS.items())
def test_configuration_lists_every_parameter_with_its_default(option, extractor):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml").features, resolve=True)
    given = {"network": {"_target_": "???"}, "name": "???"} if extractor is NetworkFeatures else {}
    defaults = {name: p.default for name, p in inspect.signature(extractor).parameters.items()}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert config == {"_target_": f"diffusion_lab.metric.{extractor.__name__}", **lists, **given}


class TestImages:
    def test_bytes_are_normalised_by_channel(self):
        x = images(5, 3, 8, 8)
        features = NetworkFeatures(nn.Flatten(), "own", size=None, mean=MEAN, std=STD, batch_size=2)
        features.prepare(x)
        found = features(x)
        assert found.dtype == torch.float32 and features.dimensions == 192 == found.shape[1]
        torch.testing.assert_close(found, normalised(to_uint8(x).float() / 255).flatten(1), rtol=0, atol=1e-6)
        assert (found - normalised(x).flatten(1)).abs().max() > 1e-3  # quantised

    @pytest.mark.parametrize("size", [6, 20])
    def test_resized_as_pillow_does(self, size):
        x = (images(2, 1, 12, 9) > 0.5).float()  # black and white: cubic interpolation overshoots
        found = ready(nn.Flatten(), size=size)(x)
        channels = [np.asarray(Image.fromarray(i[0].numpy(), "F").resize((size, size), Image.BICUBIC)) for i in x]
        assert min(c.min() for c in channels) < 0
        expected = torch.from_numpy(np.stack(channels)).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
        torch.testing.assert_close(found, normalised(expected).flatten(1), rtol=0, atol=1e-5)

    def test_their_own_size_leaves_them_as_they_are(self):
        x = to_uint8(images(2, 3, 8, 8)).float() / 255
        torch.testing.assert_close(ready(nn.Flatten())(x), normalised(x).flatten(1), rtol=0, atol=1e-5)

    def test_grey_is_repeated_unless_told_otherwise(self):
        grey = images(2, 1, 8, 8)
        assert torch.equal(ready(nn.Flatten())(grey), ready(nn.Flatten())(grey.repeat(1, 3, 1, 1)))
        for repeat, count in ((False, 64), (True, 192)):
            assert ready(nn.Flatten(), repeat_grey=repeat, mean=(0.5,), std=(0.5,))(grey).shape == (2, count)
        with pytest.raises(ValueError, match="normalise 3 channels"):
            ready(convolutions())(images(2, 2, 8, 8))


class TestNetwork:
    def test_evaluates_a_copy_in_float32_and_leaves_the_callers_alone(self):
        network = convolutions().double().train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        features = ready(network, batch_size=3)
        x = images(7, 3, 8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = features(x)
        frozen = convolutions().eval()
        torch.testing.assert_close(found, frozen(normalised(to_uint8(x).float() / 255)).flatten(1), rtol=0, atol=1e-5)
        assert not found.requires_grad and features.dimensions == 4 * 36
        assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        nn.init.zeros_(network[0].weight)
        assert torch.equal(features(x), found)

    def test_digest_covers_all_that_changes_the_features_and_nothing_else(self):
        def digest(change=lambda network: None, **options):
            network = convolutions()
            network.register_buffer("hidden", torch.zeros(3), persistent=False)
            change(network)
            return ready(network, **options).digest

        assert len(digest()) == 64
        assert digest() == digest(batch_size=1) == digest(name="other") == digest(lambda n: n.double())
        others = [
            digest(lambda n: n[0].weight.data[0, 0, 0].add_(1e-6)),
            digest(lambda n: n[1].running_mean.add_(1)),
            digest(lambda n: n.hidden.add_(1)),
            digest(lambda n: setattr(n[1], "eps", 1e-3)),
            digest(size=9),
            digest(mean=(0.4, 0.5, 0.5)),
            digest(std=(0.4, 0.5, 0.5)),
            digest(repeat_grey=False),
        ]
        assert len({digest(), *others}) == 9

    def test_protocol(self):
        features = ready(nn.Flatten())
        protocol = features.protocol()
        assert protocol["extractor"] == "own" and protocol["digest"] == features.digest
        assert protocol["dimensions"] == 192 and protocol["resize"] == "antialiased bicubic to 8"
        assert protocol["quantisation"] == "bytes, floor(255 x + 1/2)" and protocol["precision"] == "float32"
        with pytest.raises(ValueError, match="have no logits"):
            features.logits(images(2, 192))
        assert features.classes == 0

    @pytest.mark.parametrize(("shown", "output"), ODD.items())
    def test_anything_but_one_vector_per_image_is_refused_before_the_work(self, shown, output):
        class Odd(nn.Module):
            def forward(self, x):
                return output(x)

        with pytest.raises(ValueError, match=f"for 2 images Odd returns {shown}"):
            ready(Odd())

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"torch\.nn\.Module, got dict"):
            NetworkFeatures({}, "own")
        with pytest.raises(ValueError, match="letters, digits"):
            NetworkFeatures(nn.Flatten(), "my net")
        with pytest.raises(ValueError, match="one number per channel"):
            NetworkFeatures(nn.Flatten(), "own", mean=(0.5,))
        with pytest.raises(ValueError, match="need size"):
            NetworkFeatures(nn.Flatten(), "own", size=None).prepare()
        with pytest.raises(RuntimeError, match="prepare"):
            NetworkFeatures(nn.Flatten(), "own")(images(1, 3, 8, 8))
        free = NetworkFeatures(nn.Flatten(), "own", size=None)
        free.prepare(images(2, 3, 8, 8))
        with pytest.raises(ValueError, match="243 numbers per image, before 192"):
            free(images(2, 3, 9, 9))


class TestWeights:
    def test_are_read_from_both_kinds_of_files(self, tmp_path):
        state = convolutions(seed=5).state_dict()
        torch.save(state, tmp_path / "own.pth")
        save_file(state, tmp_path / "own.safetensors")
        expected = ready(convolutions(seed=5))
        for name in ("own.pth", "own.safetensors"):
            features = ready(convolutions(), weights=str(tmp_path / name))
            assert features.digest == expected.digest
            assert torch.equal(features(images(2, 3, 8, 8)), expected(images(2, 3, 8, 8)))

    def test_of_another_network_or_hostile_are_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent"):
            ready(convolutions(), weights=str(tmp_path / "absent.pth"))
        path, trap = tmp_path / "own.pth", tmp_path / "trap"
        own = convolutions().state_dict()
        for name in ("other", "0.bias"):
            torch.save(own | {name: torch.ones(5)}, path)
            message = f"not of Sequential: 1 names or shapes differ, the first is {name}"
            with pytest.raises(ValueError, match=message) as error:
                ready(convolutions(), weights=str(path))
            assert "\n" not in str(error.value)
        path.write_bytes(pickle.dumps({"0.weight": Hostile(trap)}, protocol=2))
        with pytest.raises(ValueError, match="not executed"):
            ready(convolutions(), weights=str(path))
        assert not trap.exists()


class TestConfiguration:
    CHOICE = ("metric=network", "metric.features.network._target_=my_package.MyNet", "metric.features.name=mynet")

    @pytest.fixture(autouse=True)
    def package(self, tmp_path, monkeypatch):
        (tmp_path / "my_package.py").write_text(
            "from subprocess import Popen\nfrom torch import nn\n\n"
            "class MyNet(nn.Linear):\n    def __init__(self, width=2):\n        super().__init__(8, width)\n\n"
            "def make():\n    raise SystemExit\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delenv("DIFFUSION_LAB_PACKAGES", raising=False)

    def test_builds_classes_of_packages_that_the_environment_names(self, monkeypatch):
        monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", "other, my_package")
        check("train", list(self.CHOICE))
        node = OmegaConf.load(CONF / "network.yaml").features
        node.merge_with({"network": {"_target_": "my_package.MyNet", "width": 5}, "name": "mynet", "size": 8})
        features = instantiate(OmegaConf.to_container(node))
        features.prepare()
        assert features(images(2, 3, 8, 8)).shape == (2, 3 * 8 * 5)

    def test_nothing_else_is_built(self, monkeypatch):
        for named in ("", "my", "my_package_of_another"):
            monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", named)
            with pytest.raises(ConfigError, match=r"my_package\.MyNet is refused.*DIFFUSION_LAB_PACKAGES=my_package"):
                check("train", list(self.CHOICE))
            with pytest.raises(ConfigError, match="refused"):
                resolve("my_package.MyNet")
        monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", "my_package")
        for target in ("my_package.make", "my_package.Popen", "subprocess.Popen"):
            with pytest.raises(ConfigError, match="refused"):
                resolve(target)
        monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", "my package")
        with pytest.raises(ConfigError, match="separated by commas"):
            resolve("torch.nn.Linear")
