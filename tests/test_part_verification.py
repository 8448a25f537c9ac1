"""`diffusion-lab verify` passes guidance, networks, data sets and metrics that are shipped, and fails wrong ones."""

from __future__ import annotations

import pytest
import torch
from test_sampler_verification import failures
from torch import nn

from diffusion_lab.config.compose import composed, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import DataModule, Splits
from diffusion_lab.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, Guided
from diffusion_lab.metric import energy_distance
from diffusion_lab.network import MLP
from diffusion_lab.process import VP, Linear
from diffusion_lab.verification import check_guidance
from diffusion_lab.verification.check import Chart, Check, merged
from diffusion_lab.verification.data import check_data
from diffusion_lab.verification.metric import check_distance, check_metric
from diffusion_lab.verification.mixture import class_denoiser, exact_classifier, gmm2d
from diffusion_lab.verification.network import check_network

PROCESS = VP(Linear())


def name(one):
    """The name of a class or a check in the name of a test."""
    return one if isinstance(one, str) else type(one).__name__


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(3.0, (0.1, 2.0)),
        Autoguidance(class_denoiser(gmm2d(), PROCESS), 0.5),
        ClassifierGuidance(exact_classifier(gmm2d(), PROCESS), scale=2.0),
        ClassifierGuidance(exact_classifier(gmm2d(), PROCESS), form="mean"),
    ],
    ids=name,
)
def test_every_guidance_passes(guidance):
    assert failures(check_guidance(guidance)) == []


class PlusOne(ClassifierFree):
    """The paper's w where our scale is meant."""

    def __call__(self, denoiser):
        return Guided(denoiser, denoiser.given(), self.scale + 1, self.interval)


class AlwaysOn(ClassifierFree):
    def __call__(self, denoiser):
        return Guided(denoiser, denoiser.given(), self.scale, None)


class FromTheBatch(Guided):
    def forward(self, x, t):
        estimate = super().forward(x, t)
        return type(estimate)(x, estimate.alpha, estimate.sigma, estimate.eps + 1e-3 * x.mean(0), None)


class OfTheBatch(ClassifierFree):
    def __call__(self, denoiser):
        return FromTheBatch(denoiser, denoiser.given(), self.scale, self.interval)


@pytest.mark.parametrize(
    "guidance, check",
    [
        (PlusOne(1.0), "guided score at scale 1 - the class's score"),
        (PlusOne(2.0), "guided score at scale 2 - its closed form"),
        (AlwaysOn(2.0), "on inside of an interval"),
        (OfTheBatch(2.0), "an item alone"),
        (OfTheBatch(2.0), "as samplers ask for it"),
    ],
    ids=name,
)
def test_wrong_guidance_fails(guidance, check):
    assert any(check in one for one in failures(check_guidance(guidance)))


@pytest.mark.parametrize(
    "words",
    [
        "network=unet_small",
        "network=ncsn_small",
        "network=ncsnv2_small",
        "network=adm_small network.classes=3",
        "network=adm_small network.learned_range=true",
        "network=classifier_small network.outputs=10",
        "network=energy_small",
        "network=mlp data=toy2d",
        "network=energy data=toy2d",
        "network=small/score_sde",
    ],
)
def test_networks_pass(words):
    settings = plain(composed("train", words.split()))
    network = instantiate(settings["network"], "network")
    assert failures(check_network(network, settings["data"]["shape"], settings["network"].get("classes"))) == []


class MixesTheBatch(MLP):
    def forward(self, x, t, label=None):
        return super().forward(x - x.mean(0), t, label)


class Normalised(nn.Module):
    """Batch normalisation: each item alone in evaluation, and mixed in training."""

    classes = None

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.BatchNorm1d(2), MLP(2)

    def forward(self, x, t):
        return self.mlp(self.norm(x), t)


class IgnoresTime(MLP):
    def forward(self, x, t, label=None):
        return super().forward(x, 0 * t, label)


class NeverUsed(MLP):
    def __init__(self, size):
        super().__init__(size)
        self.forgotten = nn.Linear(3, 3)


class Detached(MLP):
    def forward(self, x, t, label=None):
        return x + super().forward(x, t, label).detach() + 0 * sum(p.sum() for p in self.parameters())


class Random(MLP):
    def forward(self, x, t, label=None):
        return super().forward(x, t, label) + torch.randn_like(x)


class InPlace(MLP):
    def forward(self, x, t, label=None):
        if not x.requires_grad:
            x.mul_(1.01)
        return super().forward(x, t, label)


class ThreeOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP(2)

    def forward(self, x, t):
        return torch.cat([self.mlp(x, t), x[:, :1]], 1)


@pytest.mark.parametrize(
    "network, check",
    [
        (MixesTheBatch(2), "an item alone"),
        (Normalised(), "gradient of an item in others"),
        (IgnoresTime(2), "change with t"),
        (NeverUsed(2), "without a gradient"),
        (Detached(2), "without a gradient"),
        (Random(2), "a second call"),
        (InPlace(2), "change of the input"),
        (ThreeOutputs(), "output sizes"),
    ],
    ids=name,
)
def test_wrong_networks_fail(network, check):
    torch.manual_seed(0)
    assert any(check in one for one in failures(check_network(network, (2,))))


@pytest.mark.parametrize("words", ["data=digits", "data=toy2d", "data=patches"])
def test_data_sets_pass(words):
    node = plain(composed("train", words.split()))["data"]
    assert failures(check_data(lambda seed: instantiate({**node, "seed": seed}, "data"))) == []


class Mine(DataModule):
    """Two hundred random images, changed by a function."""

    def __init__(self, seed, change=lambda x, labels: (x, labels, x[150:], labels[150:]), **options):
        super().__init__(shape=(1, 4, 4), batch_size=20, seed=seed, **options)
        self.change = change

    def load(self):
        source = torch.Generator().manual_seed(0)
        x, labels = torch.rand(200, 1, 4, 4, generator=source), torch.arange(200) % 3
        x, labels, held, held_labels = self.change(x, labels)
        pairs = ((x[:150], labels[:150]), (held, held_labels))
        return Splits(*(torch.utils.data.TensorDataset(*pair) for pair in pairs))


class Reshuffled(Mine):
    """Its order depends on when it was made."""

    def setup(self, stage):
        super().setup(stage)
        self.batches.seed = int(torch.randint(1000, ()))


@pytest.mark.parametrize(
    "make, check",
    [
        (lambda seed: Mine(seed, lambda x, y: (2 * x - 0.5, y, x[150:], y[150:])), "refused: Mine"),
        (lambda seed: Mine(seed, lambda x, y: (x, y, x[140:], y[140:])), "training items too"),
        (lambda seed: Mine(seed, lambda x, y: (x, y - 1, x[150:], y[150:])), "smallest label"),
        (lambda seed: Mine(seed, lambda x, y: (x, y % 2, x[150:], y[150:])), "held-out classes"),
        (lambda seed: Mine(seed, lambda x, y: (0 * x, y, x[150:], y[150:])), "deviation"),
        (Reshuffled, "the same seed has another item"),
        (lambda seed: Mine(0), "another seed"),
    ],
)
def test_wrong_data_fails(make, check):
    assert failures(check_data(Mine)) == []
    assert any(check in one for one in failures(check_data(make)))


class Features:
    """Means of the rows of an image, changed by a function of the images and their features."""

    name, short, dimensions, classes, digest, learned = "rows", "fd", 4, 0, "1", False

    def __init__(self, change=lambda images, features: features):
        self.change = change

    def prepare(self, images, labels, device):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return self.change(images, images.mean(3)[:, 0])


@pytest.mark.parametrize("metric, shape", [("digits", (1, 8, 8)), ("points", (2,))])
def test_metrics_pass(metric, shape):
    node = plain(composed("train", [f"metric={metric}"]))["metric"]["features"]
    assert failures(check_metric(node and instantiate(node, "metric"), shape)) == []


@pytest.mark.parametrize(
    "change, check",
    [
        (lambda images, features: features - features.mean(0), "in parts"),
        (lambda images, features: features.cumsum(0), "in another order"),
        (lambda images, features: features[:, :3], "dimensions"),
        (lambda images, features: features.double(), "float32"),
        (lambda images, features: 0 * features, "largest standard deviation"),
        (lambda images, features: images.mul_(0.99).mean(3)[:, 0], "change of the images"),
        (lambda images, features: features + torch.rand(()), "a second call"),
    ],
)
def test_wrong_extractors_fail(change, check):
    assert failures(check_metric(Features(), (1, 4, 4))) == []
    assert any(check in one for one in failures(check_metric(Features(change), (1, 4, 4))))


@pytest.mark.parametrize(
    "distance, check",
    [
        (lambda x, y: (x.mean(0) - y.mean(0)).norm().item() + x.norm().item(), "of a set to itself"),
        (lambda x, y: (x - y[: len(x)]).square().mean().item(), "in another order"),
        (lambda x, y: ((x.mean(0) - y.mean(0)).norm() / y.norm()).item(), "b to a"),
        (lambda x, y: 1 / (1 + (x.mean(0) - y.mean(0)).norm().item()), "of a farther set"),
    ],
)
def test_wrong_distances_fail(distance, check):
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert failures(check_distance("distance", energy_distance, x)) == []
    assert any(check in one for one in failures(check_distance("distance", distance, x)))


def test_a_check_says_what_it_compares():
    assert Check("a", 1.0, 1.5, 0.5).passed and not Check("a", 1.0, 1.5, 0.4).passed
    assert Check("a", 2.0, 1.5, 0.0, ">=").passed and not Check("a", 1.4, 1.5, 0.05, ">=").passed
    assert Check("a", 1.0, 1.5, 0.0, "<=").passed and not Check("a", float("nan")).passed
    reported = Check("a", float("inf"), tolerance=None)
    assert reported.passed and reported.verdict == "-" and reported.row()["value"] == "inf"
    assert str(Check("order", 0.5, 1.0, 0.2, ">=")).split() == ["order", "0.5", ">=", "1", "0.2", "FAILED"]
    one, other = (Chart("law", "x", "y", {"": [(0, k)]}, {"exact": [(0, 0)]}).named(f"p{k}") for k in (1, 2))
    (both,) = merged([one, other])
    assert both.lines == {"p1": [(0, 1)], "p2": [(0, 2)]} and list(both.exact) == ["exact"]
