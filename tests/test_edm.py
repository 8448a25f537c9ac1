"""EDM against NVlabs' program: networks from plain weights, preconditioning, losses and samplers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reference.record_adm import weights_of
from reference.record_edm import CASES

from diffusion_lab.interop.layout import recognise
from diffusion_lab.network import NCSNpp

REFERENCE, CONF = Path(__file__).parent / "reference", Path(__file__).parents[1] / "conf" / "network"
NETWORKS = np.load(REFERENCE / "edm_networks.npz")
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
SIZES = {"channels": 32, "multipliers": [2, 1, 2], "blocks": 1, "attention": [8]}


def network_of(name: str, size: int = 32, **options) -> NCSNpp:
    """A network of conf/network."""
    config = OmegaConf.create({"data": {"shape": [3, size, size]}, "network": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(config.network, **options).eval()


@pytest.mark.parametrize("case", CASES)
def test_same_weights_give_the_official_output(case):
    used = CASES[case][1]
    labels = {"classes": 5, "augmentation": 9} if used else {}
    network = network_of(f"edm_{case.removesuffix('_labels')}", 16, **SIZES, **labels)
    official = weights_of(json.loads(str(NETWORKS[f"{case}_shapes"])))
    layout = recognise(network, official)
    assert layout.name == "EDM"
    assert {*layout.order(network)} == official.keys() - {"map_noise.freqs"}
    filters = {"enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 4, 4)}
    network.load_state_dict(layout.convert(network, official | filters))
    x, t, *more = (torch.from_numpy(NETWORKS[key]) for key in ("x", "t", *used))
    with torch.no_grad():
        out, wanted = network(x, t, *more), torch.from_numpy(NETWORKS[f"{case}_out"])
    assert ((out - wanted).abs().max() / wanted.abs().max()).item() < 5e-6


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_the_networks_have_as_many_trained_parameters_as_the_official_ones(name):
    with torch.device("meta"):
        network = network_of(f"edm_{name}")
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == COUNTS[f"edm.cifar10.{name}"]
