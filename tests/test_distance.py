"""Distances of images: LPIPS against its formula, and what has none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch.nn.functional import interpolate
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from diffusion_lab.loss import ConsistencyLoss, KarrasPairs
from diffusion_lab.loss.distance import Distance, vgg_weights


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """The layers of VGG-16 with random weights, in place of those that would be downloaded."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
        patch.setattr(torchvision.models, "vgg16", lambda weights: SimpleNamespace(features=layers))
        patch.setattr(torch.hub, "get_dir", lambda: str(tmp_path_factory.getbasetemp() / "hub"))
        vgg_weights().parent.mkdir(parents=True)
        vgg_weights().touch()
        yield layers


def by_formula(layers, a, b):
    """Zhang et al. 2018, Eq. 1: sum_l mean_hw sum_c w_lc (y_lc - y'_lc)^2 with unit features y, of images in [-1, 1]."""
    shift, scale = (torch.tensor(row).reshape(1, 3, 1, 1) for row in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
    weights = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.lins
    features = []
    for x in (a, b):
        x, kept = (interpolate(x.expand(-1, 3, -1, -1), (224, 224), mode="bilinear") - shift) / scale, []
        for index, layer in enumerate(layers):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):  # the last ReLU before each pooling
                kept.append(x / x.square().sum(1, keepdim=True).sqrt())
        features.append(kept)
    terms = zip(*features, weights, strict=True)
    return sum((lin.model[-1].weight * (y - z).square()).sum(1).mean((1, 2)) for y, z, lin in terms)


def test_lpips_is_its_formula_and_moves_the_student_alone(vgg):
    a, b = torch.rand(2, 2, 1, 16, 16)
    a.requires_grad_()
    distance = Distance("lpips")
    found = distance(a, b, (0.0, 1.0))
    torch.testing.assert_close(found, by_formula(vgg, 2 * a - 1, 2 * b - 1), rtol=1e-4, atol=1e-7)
    found.sum().backward()
    assert a.grad.abs().sum() > 0 and not any(weight.requires_grad for weight in distance._lpips.parameters())
    assert distance(b, b).abs().max() == 0


def test_a_consistency_loss_of_lpips_keeps_vgg_out_of_its_checkpoint(vgg):
    loss = ConsistencyLoss(KarrasPairs(), distance="lpips")
    loss.check(SimpleNamespace(process=SimpleNamespace(levels=None)), (3, 8, 8))
    loss.distance(*torch.rand(2, 1, 3, 8, 8))
    assert set(loss.training_state()) == {"updates"}


def test_points_and_missing_weights_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="compares images of 1 or 3 channels: choose l2 or l1"):
        Distance("lpips").check((2,))
    with pytest.raises(ValueError, match=r"weights of VGG-16 .* in .*vgg16-.*\.pth: download them once with python -c"):
        Distance("lpips").check((3, 8, 8))
    Distance("l2").check((2,))


def test_damaged_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: torch.load(vgg_weights(), weights_only=True))
    vgg_weights().parent.mkdir(parents=True)
    vgg_weights().write_bytes(b"half a file")
    with pytest.raises(
        ValueError, match=r"vgg16-.*\.pth is damaged \(\w+\): remove the weights and download them once"
    ):
        Distance("lpips")(*torch.zeros(2, 2, 3, 8, 8))
