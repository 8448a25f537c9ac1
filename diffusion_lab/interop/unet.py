"""DDPM's U-Net in the two layouts of its official weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from diffusion_lab.interop.mapping import Link, Parts, Source, links
from diffusion_lab.network import UNet


def nin(name: str) -> Source:
    """A 1x1 convolution of ScoreSDE, whose weight is (in, out)."""
    return Source(name, "W", "b", Tensor.t)


ATTENTION = {
    ".norm": (Source(".GroupNorm_0"),),
    ".qkv": (nin(".NIN_0"), nin(".NIN_1"), nin(".NIN_2")),
    ".out": (nin(".NIN_3"),),
}
RESIDUAL = {
    ".norm1": (Source(".GroupNorm_0"),),
    ".conv1": (Source(".Conv_0"),),
    ".shift": (Source(".Dense_0"),),
    ".norm2": (Source(".GroupNorm_1"),),
    ".conv2": (Source(".Conv_1"),),
}
SCORE_SDE: Parts = {
    "layer": {"": (Source(""),)},
    "resample": {".conv": (Source(".Conv_0"),)},
    "residual": {**RESIDUAL, ".shortcut": (nin(".NIN_0"),)},
    "attention": ATTENTION,
}
DDIM: Parts = {
    "layer": {"": (Source(""),)},
    "resample": {".conv": (Source(".conv"),)},
    "residual": {
        ".norm1": (Source(".norm1"),),
        ".conv1": (Source(".conv1"),),
        ".shift": (Source(".temb_proj"),),
        ".norm2": (Source(".norm2"),),
        ".conv2": (Source(".conv2"),),
        ".shortcut": (Source(".nin_shortcut"),),
    },
    "attention": {
        ".norm": (Source(".norm"),),
        ".qkv": (Source(".q"), Source(".k"), Source(".v")),
        ".out": (Source(".proj_out"),),
    },
}


def walk(network: UNet) -> Iterator[tuple[str, str, str]]:
    """Yield every block in order of execution, as (type, our name, DDIM's name)."""

    def stages(count: int, ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
        for i in range(count):
            yield "residual", f"{ours}.{i}.residual", f"{theirs}.block.{i}"
            yield "attention", f"{ours}.{i}.attention", f"{theirs}.attn.{i}"

    yield "layer", "time.dense1", "temb.dense.0"
    yield "layer", "time.dense2", "temb.dense.1"
    yield "layer", "conv_in", "conv_in"
    bottom = len(network.down) - 1
    for level in range(bottom + 1):
        if level > 0:
            yield "resample", f"downsample.{level - 1}", f"down.{level - 1}.downsample"
        yield from stages(len(network.down[level]), f"down.{level}", f"down.{level}")
    yield "residual", "middle.0.residual", "mid.block_1"
    yield "attention", "middle.0.attention", "mid.attn_1"
    yield "residual", "middle.1.residual", "mid.block_2"
    for level in range(bottom, -1, -1):
        yield from stages(len(network.up[bottom - level]), f"up.{bottom - level}", f"up.{level}")
        if level > 0:
            yield "resample", f"upsample.{bottom - level}", f"up.{level}.upsample"
    yield "layer", "conv_out.0", "norm_out"
    yield "layer", "conv_out.2", "conv_out"


def score_sde_links(network: UNet) -> list[Link]:
    """Return the links for ScoreSDE's layout, with blocks numbered in order of execution."""
    present = network.state_dict().keys()
    blocks = [block for block in walk(network) if any(name.startswith(f"{block[1]}.") for name in present)]
    numbered = ((kind, ours, f"all_modules.{number}") for number, (kind, ours, _) in enumerate(blocks))
    return list(links(numbered, SCORE_SDE, present))


def ddim_links(network: UNet) -> list[Link]:
    """Return the links for DDIM's layout, also that of converted TensorFlow checkpoints of DDPM, with named blocks."""
    return list(links(walk(network), DDIM, network.state_dict().keys()))
