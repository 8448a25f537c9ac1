"""The networks against the official ones, weight for weight, and against what their docstrings promise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.analytic import recipe_weights
from torch import Tensor

from diffusion_lab.network import UNet

REFERENCE = Path(__file__).parent / "reference"
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


def load_official(name: str, port: str, net: UNet) -> dict[str, Tensor]:
    """Give the net the weights of a recorded official one, each used once, and return the recorded arrays."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        record = dict(file)
    meta = json.loads(bytes(record.pop("_meta")).decode())
    weights = recipe_weights(meta["layout"], kinds=meta["kinds"])
    names = list(official_names(net, port))
    assert sorted(official for officials, _, _ in names for official in officials) == sorted(weights)
    net.load_state_dict(
        {ours: turn(*(torch.from_numpy(weights[o]) for o in officials)) for officials, ours, turn in names}
    )
    return {key: torch.from_numpy(array) for key, array in record.items()}


OFFICIAL = {
    "score_sde": ("net_ddpm_small", {"blocks": 1, "up_attention": "last"}),
    "ddim": ("net_ddim_small", {"blocks": 2, "up_attention": "every"}),
}


def official(port: str) -> tuple[UNet, dict[str, Tensor]]:
    name, form = OFFICIAL[port]
    net = UNet(3, 16, channels=32, multipliers=(1, 2), attention=(8,), **form).eval()
    return net, load_official(name, port, net)


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("port", OFFICIAL)
def test_same_weights_give_the_official_output(port):
    net, record = official(port)
    with torch.no_grad():
        single = net(record["x"], record["cond"])
        double = net.double()(record["x"].double(), record["cond"])
    print(error(single, record["y_f32"]), error(double, record["y_f64"]))
    assert error(single, record["y_f32"]) < 5e-6
    assert error(double, record["y_f64"]) < 1e-9
