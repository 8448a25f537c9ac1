"""The U-Net against the two official ones, weight for weight: the same weights must give the same output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from analytic import recipe_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_lab.network import UNet

COUNTS = json.loads((Path(__file__).parent / "reference" / "param_counts.json").read_text())
CONF = Path(__file__).parents[1] / "conf" / "network"

# Each part of our blocks, and the parts it is made of in the two official layouts: ScoreSDE's port numbers its
# blocks in order of execution; DDIM's, which converted TensorFlow checkpoints share, names them by their place.
PARTS: dict[str, dict[str, dict[str, list[str]]]] = {
    "layer": {"": {"score_sde": [""], "ddim": [""]}},
    "resample": {".conv": {"score_sde": [".Conv_0"], "ddim": [".conv"]}},
    "residual": {
        ".norm1": {"score_sde": [".GroupNorm_0"], "ddim": [".norm1"]},
        ".conv1": {"score_sde": [".Conv_0"], "ddim": [".conv1"]},
        ".shift": {"score_sde": [".Dense_0"], "ddim": [".temb_proj"]},
        ".norm2": {"score_sde": [".GroupNorm_1"], "ddim": [".norm2"]},
        ".conv2": {"score_sde": [".Conv_1"], "ddim": [".conv2"]},
        ".shortcut": {"score_sde": [".NIN_0"], "ddim": [".nin_shortcut"]},
    },
    "attention": {
        ".norm": {"score_sde": [".GroupNorm_0"], "ddim": [".norm"]},
        ".qkv": {"score_sde": [".NIN_0", ".NIN_1", ".NIN_2"], "ddim": [".q", ".k", ".v"]},
        ".out": {"score_sde": [".NIN_3"], "ddim": [".proj_out"]},
    },
}


def walk(net: UNet) -> Iterator[tuple[str, str, str]]:
    """Every block in order of execution, as (kind, our name, DDIM's name)."""

    def stages(count: int, ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
        for i in range(count):
            yield "residual", f"{ours}.{i}.residual", f"{theirs}.block.{i}"
            yield "attention", f"{ours}.{i}.attention", f"{theirs}.attn.{i}"

    yield "layer", "time.dense1", "temb.dense.0"
    yield "layer", "time.dense2", "temb.dense.1"
    yield "layer", "enter.0", "conv_in"
    bottom = len(net.down) - 1
    for level in range(bottom + 1):
        if level > 0:
            yield "resample", f"enter.{level}", f"down.{level - 1}.downsample"
        yield from stages(len(net.down[level]), f"down.{level}", f"down.{level}")
    yield "residual", "middle.0.residual", "mid.block_1"
    yield "attention", "middle.0.attention", "mid.attn_1"
    yield "residual", "middle.1.residual", "mid.block_2"
    for level in range(bottom, -1, -1):
        yield from stages(len(net.up[bottom - level]), f"up.{bottom - level}", f"up.{level}")
        if level > 0:
            yield "resample", f"leave.{bottom - level}", f"up.{level}.upsample"
    yield "layer", f"leave.{bottom}.0", "norm_out"
    yield "layer", f"leave.{bottom}.2", "conv_out"


def official_names(net: UNet, port: str) -> Iterator[tuple[list[str], str, Callable[..., Tensor]]]:
    """What each of our tensors is made of: (official names, our name, official tensors -> our tensor)."""
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    present = [block for block in walk(net) if any(name.startswith(block[1] + ".") for name in shapes)]
    for number, (kind, ours, place) in enumerate(present):
        prefix = f"all_modules.{number}" if port == "score_sde" else place
        for part, sources in PARTS[kind].items():
            for leaf in ("weight", "bias"):
                if (name := f"{ours}{part}.{leaf}") in shapes:
                    names = [f"{prefix}{source}.{leaf}" for source in sources[port]]
                    yield [nin_leaf(n) for n in names], name, to_ours(shapes[name], ".NIN_" in names[0])


def nin_leaf(name: str) -> str:
    return name.replace("weight", "W").replace("bias", "b") if ".NIN_" in name else name


def to_ours(shape: torch.Size, transposed: bool) -> Callable[..., Tensor]:
    """Official tensors one below the other in our shape; ScoreSDE's 1x1 maps are stored (in, out)."""
    return lambda *tensors: torch.cat([t.T if transposed and t.dim() == 2 else t for t in tensors]).reshape(shape)


def official(recorded: Callable, port: str) -> tuple[UNet, dict[str, Tensor]]:
    """Our net with the weights of a recorded official one, each used once; and its recorded input and output."""
    name, form = OFFICIAL[port]
    record = recorded(name)
    weights = recipe_weights(record.meta["layout"], kinds=record.meta["kinds"])
    net = UNet(3, 16, channels=32, multipliers=(1, 2), attention=(8,), **form).eval()
    names = list(official_names(net, port))
    assert sorted(source for sources, _, _ in names for source in sources) == sorted(weights)
    net.load_state_dict({ours: turn(*(torch.from_numpy(weights[s]) for s in sources)) for sources, ours, turn in names})
    return net, {key: record[key] for key in record.arrays}


OFFICIAL = {
    "score_sde": ("net_ddpm_small", {"blocks": 1, "up_attention": "last"}),
    "ddim": ("net_ddim_small", {"blocks": 2, "up_attention": "every"}),
}


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("port", OFFICIAL)
def test_same_weights_give_the_official_output(recorded, port):
    net, record = official(recorded, port)
    with torch.no_grad():
        assert error(net(record["x"], record["cond"]), record["y_f32"]) < 5e-6
        assert error(net.double()(record["x"].double(), record["cond"].double()), record["y_f64"]) < 1e-12


@pytest.mark.parametrize(
    "form, count",
    [
        ({}, COUNTS["diffusers UNet2DModel google/ddpm-cifar10-32 config"]),
        ({"up_attention": "last"}, COUNTS["score_sde.vp.ddpm.cifar10"][0]),
    ],
)
def test_parameter_counts_of_the_papers(form, count):
    config = OmegaConf.create({"data": {"shape": [3, 32, 32]}, "network": OmegaConf.load(CONF / "unet.yaml")})
    with torch.device("meta"):
        net = instantiate(config.network, **form)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
