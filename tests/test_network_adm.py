"""The networks of IDDPM and ADM against the authors' programs: the same weights must give the same output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.record_adm import weights_of

from diffusion_lab.interop import openai
from diffusion_lab.interop.layout import recognise
from diffusion_lab.network import ADMUNet, NoisyClassifier

RECORD = np.load(Path(__file__).parent / "reference" / "adm_networks.npz")
ADM = {"channels": 32, "multipliers": (1, 2, 3), "blocks": 1, "attention": (8, 4), "dropout": 0.0, "head_channels": 16}
NETWORKS = {
    "iddpm": lambda: ADMUNet(
        3, 16, channels=32, multipliers=(1, 2, 2), blocks=2, attention=(8, 4), heads=4, learned_range=True
    ),
    "adm": lambda: ADMUNet(3, 16, **ADM, biggan=True, learned_range=True, new_attention_order=True, classes=5),
    "plain": lambda: ADMUNet(
        3, 16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), heads=2, scale_shift=False
    ),
    "classifier": lambda: NoisyClassifier(3, 16, 10, **ADM),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_same_weights_give_the_official_output(name):
    network = NETWORKS[name]().eval()
    official = weights_of(json.loads(str(RECORD[f"{name}_shapes"])))
    layout = recognise(network, official)
    assert layout.name == "ADM" and sorted(layout.order(network)) == sorted(official)
    network.load_state_dict(layout.convert(network, official))
    inputs = [torch.from_numpy(RECORD[key]) for key in ("x", "t", *(["label"] if name == "adm" else []))]
    with torch.no_grad():
        out, wanted = network(*inputs), torch.from_numpy(RECORD[f"{name}_out"])
    assert ((out - wanted).abs().max() / wanted.abs().max()).item() < 5e-6


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: ADMUNet(3, 32, learned_range=True), 52_546_438),
        (
            lambda: ADMUNet(
                *(3, 64), channels=192, multipliers=(1, 2, 3, 4), attention=(32, 16, 8), head_channels=64, biggan=True,
                learned_range=True, classes=1000,
            ),
            295_904_454 + 768,  # and the null label
        ),
        (lambda: NoisyClassifier(3, 64, 1000), 65_438_568),
    ],
    ids=["iddpm-cifar10", "adm-imagenet64", "classifier-imagenet64"],
)  # fmt: skip
def test_the_published_networks_have_as_many_parameters_as_the_official_ones(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_a_new_network_returns_zeros_and_learns_each_of_its_weights():
    network = ADMUNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, biggan=True, classes=3)
    x, t, label = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])
    assert network(x, t, label).abs().max() == 0
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(x, t, label).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_null_label_of_imported_weights_is_zero():
    network = NETWORKS["adm"]()
    official = weights_of(json.loads(str(RECORD["adm_shapes"])))
    table = openai.unet(network, official)["embedding.labels.weight"]
    assert table.shape == (6, 128) and not table[5].any() and table[:5].equal(official["label_emb.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ADMUNet(3, 16, head_channels=48, channels=32, attention=(16,)), "head_channels=48 does not divide"),
        (lambda: ADMUNet(3, 16, heads=3, channels=32, attention=(16,)), "heads=3 does not divide"),
        (lambda: ADMUNet(3, 16, attention=(5,)), "attention"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
