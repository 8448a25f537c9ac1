"""EDM against NVlabs' program: networks from plain weights, preconditioning, losses and samplers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment import settings
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reference.record_adm import weights_of
from reference.record_edm import CASES

from diffusion_lab.config.instantiate import instantiate as instantiate_part
from diffusion_lab.interop.layout import recognise
from diffusion_lab.network import NCSNpp
from diffusion_lab.run import changes

REFERENCE, CONF = Path(__file__).parent / "reference", Path(__file__).parents[1] / "conf" / "network"
NETWORKS = np.load(REFERENCE / "edm_networks.npz")
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
CONSTANTS = json.loads((REFERENCE / "constants.json").read_text())
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


def test_the_recipe_has_the_official_numbers():
    c, official = settings("edm/vp_f"), CONSTANTS["configs"]["edm:cifar10 (train.py defaults)"]
    found = {
        "P_mean": c["time_law"]["mean"], "P_std": c["time_law"]["std"], "augment": c["data"]["augment"],
        "batch": c["data"]["batch_size"], "channel_mult": c["network"]["multipliers"],
        "dropout": c["network"]["dropout"], "ema_halflife_mimg": c["callback"]["ema"]["half_life"] / 1e6,
        "duration_mimg": c["trainer"]["max_steps"] * c["data"]["batch_size"] / 1e6, "lr": c["optimizer"]["lr"],
        "model_channels": c["network"]["channels"], "num_steps": c["sampler"]["steps"], "rho": c["sampler"]["rho"],
        "sigma_data": c["model"]["sigma_data"], "sigma_max": c["schedule"]["sigma_max"],
        "sigma_min": c["schedule"]["sigma_min"],
    }  # fmt: skip
    assert found == official
    assert c["warmup_steps"] * 512 == pytest.approx(10e6, rel=1e-4) and c["callback"]["ema"]["ramp"] == 0.05


def changed(name: str, before: str) -> set[str]:
    """The keys that differ between two experiments, without copies and paths."""
    one, two = changes.leaves(settings(before)), changes.leaves(settings(name))
    return {
        key
        for key in one | two
        if one.get(key) != two.get(key) and not key.startswith(("model.", "sde.process", "choices."))
    }


TRAINING = {"warmup_steps", "data.batch_size", "network.dropout", "optimizer.lr", "callback.ema.half_life",
            "trainer.max_steps", "trainer.gradient_clip_val"}  # fmt: skip


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_each_configuration_changes_what_the_paper_says(name):
    assert changed(f"edm/{name}_b", f"edm/{name}_a") == TRAINING
    assert changed(f"edm/{name}_c", f"edm/{name}_b") == {"network.multipliers", "network.label_embedding"}
    low = {"sde.low", "sigma_min", "sigma_max", "schedule.sigma_min", "schedule.sigma_max"} if name == "ve" else set()
    rows = {"sde.output", "sde.c_noise", "sde.unit_input", "sde.sigma_data"}
    assert changed(f"edm/{name}_d", f"edm/{name}_c") == rows | low
    assert {"time_law._target_", "loss.weighting"} <= changed(f"edm/{name}_e", f"edm/{name}_d")
    assert changed(f"edm/{name}_f", f"edm/{name}_e") == {"data.flip", "data.augment"}


@pytest.mark.parametrize("config", "abcde")
@pytest.mark.parametrize("name, lowest", [("vp", 0.002), ("ve", 0.02)])
def test_every_configuration_is_sampled_on_edms_grid(name, lowest, config):
    """18 levels from sigma / alpha = 80 in units of [-1, 1], down to the lowest that the baseline was trained with."""
    c = settings(f"edm/{name}_{config}")
    model = instantiate_part({**c["model"], "network": {"_target_": "torch.nn.Identity"}}, "model")
    times, row = model.sampler.check(model.denoiser), model.denoiser.parameterization
    sigma = (model.denoiser.process.log_snr(times) / -2).exp() * 2 / (row.high - row.low)
    lowest = lowest if config < "e" else 0.002
    i = torch.arange(18) / 17
    wanted = (80 ** (1 / 7) + i * (lowest ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert len(times) == 18
    torch.testing.assert_close(sigma.double(), wanted.double(), rtol=2e-3, atol=0)
