"""The U-Net against the two official ones: the same weights must give the same output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from analytic import recipe_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_lab.interop.mapping import Link, convert
from diffusion_lab.interop.score_sde import ddpm, trainable_order
from diffusion_lab.interop.unet import ddim_links, score_sde_links
from diffusion_lab.network import UNet

COUNTS = json.loads((Path(__file__).parent / "reference" / "param_counts.json").read_text())
CONF = Path(__file__).parents[1] / "conf" / "network"
OFFICIAL: dict[str, tuple[str, dict[str, object], Callable[[UNet], list[Link]]]] = {
    "score_sde": ("net_ddpm_small", {"blocks": 1, "up_attention": "last"}, score_sde_links),
    "ddim": ("net_ddim_small", {"blocks": 2, "up_attention": "every"}, ddim_links),
}


def official(recorded: Callable, port: str) -> tuple[UNet, dict[str, Tensor], Callable, list[Link]]:
    """Our network in a recorded official configuration; official weights; recorded values; name mapping."""
    name, form, joined = OFFICIAL[port]
    record = recorded(name)
    weights = recipe_weights(record.meta["layout"], kinds=record.meta["kinds"])
    net = UNet(3, 16, channels=32, multipliers=(1, 2), attention=(8,), **form).eval()
    return net, {key: torch.from_numpy(weight) for key, weight in weights.items()}, record, joined(net)


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("port", OFFICIAL)
def test_same_weights_give_the_official_output(recorded, port):
    net, weights, record, joined = official(recorded, port)
    assert sorted(link.theirs for link in joined) == sorted(weights)
    net.load_state_dict(convert(net, weights, joined))
    with torch.no_grad():
        assert error(net(record["x"], record["cond"]), record["y_f32"]) < 5e-6
        assert error(net.double()(record["x"].double(), record["cond"].double()), record["y_f64"]) < 1e-12


def test_the_port_of_score_sde_by_its_public_name(recorded):
    net, weights, record, joined = official(recorded, "score_sde")
    state = ddpm(net, {**weights, "sigmas": torch.ones(1000)})
    truth = convert(net, weights, joined)
    assert state.keys() == net.state_dict().keys()
    assert all(state[name].equal(truth[name]) for name in truth)
    assert trainable_order(net) == record.meta["trainable_order"]


@pytest.mark.parametrize(
    "name, form, count",
    [
        ("unet", {}, COUNTS["diffusers UNet2DModel google/ddpm-cifar10-32 config"]),
        ("unet", {"up_attention": "last"}, COUNTS["score_sde.vp.ddpm.cifar10"][0]),
        ("ddpm_score_sde", {}, COUNTS["score_sde.vp.ddpm.cifar10"][0]),
    ],
)
def test_parameter_counts_of_the_papers(name, form, count):
    config = OmegaConf.create({"data": {"shape": [3, 32, 32]}, "network": OmegaConf.load(CONF / f"{name}.yaml")})
    with torch.device("meta"):
        net = instantiate(config.network, **form)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
