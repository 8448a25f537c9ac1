"""Names of the first edition and what they are called now, so that its checkpoints and runs stay usable."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

KEYS = {"told": "c_noise"}
"""Keys of a configuration."""

CLASSES = {
    "diffusion_lab.process.Ladder": "diffusion_lab.process.DiscreteProcess",
    "diffusion_lab.callback.Guard": "diffusion_lab.callback.NonFiniteGuard",
    "diffusion_lab.launch.wandb_logger.": "diffusion_lab.logger.wandb.",
    "diffusion_lab.launch.tensorboard_logger.": "diffusion_lab.logger.tensorboard.",
}
"""Classes that a configuration names, or the modules they are in."""

WEIGHTS = (
    (r"enter\.0\.(0\.)?(weight|bias)$", lambda m, last: f"conv_in.{m[2]}"),
    (r"enter\.(\d+)\.", lambda m, last: f"downsample.{int(m[1]) - 1}."),
    (r"leave\.(\d+)\.", lambda m, last: "conv_out." if int(m[1]) == last else f"upsample.{m[1]}."),
    (r"inputs\.(\d+)\.", lambda m, last: f"input_pyramid.{int(m[1]) - 1}."),
    (r"outputs\.(\d+)\.", lambda m, last: f"output_pyramid.{m[1]}."),
    (r"enter\.(weight|bias)$", lambda m, last: f"conv_in.{m[1]}"),
    (r"leave\.(weight|bias)$", lambda m, last: f"conv_out.{m[1]}"),
    (r"enter\.(weight|bias)$", lambda m, last: f"linear_in.{m[1]}"),
    (r"leave\.(weight|bias)$", lambda m, last: f"linear_out.{m[1]}"),
)
"""Ends of parameters' names in U-Nets, RefineNets and perceptrons; `last` is the number of the lowest resolution."""


def settings(node: Any) -> Any:
    """A plain configuration under today's names."""
    if isinstance(node, Mapping):
        return {KEYS.get(key, key): settings(value) for key, value in node.items()}
    if isinstance(node, list):
        return [settings(value) for value in node]
    return replaced(node) if isinstance(node, str) else node


def override(line: str) -> str:
    """An override such as sde.told=level under today's names."""
    key, equals, value = line.partition("=")
    for old, new in KEYS.items():
        key = re.sub(rf"(^|[.+~]){old}$", rf"\g<1>{new}", key)
    return key + equals + replaced(value)


def replaced(text: str) -> str:
    """A text with today's names of classes."""
    for old, new in CLASSES.items():
        text = re.sub(rf"{re.escape(old)}(?!\w)" if old[-1] != "." else re.escape(old), new, text)
    return text


def weights(names: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """Name in a checkpoint -> name in the network whose parameters are called `own`, where that has another."""
    names = list(names)
    levels = [int(found[1]) for name in names if (found := re.search(r"(?:^|\.)down\.(\d+)\.", name))]
    last, renamed = max(levels, default=0), {}
    for name in names if not {*names} <= {*own} else ():
        for pattern, new in WEIGHTS if name not in own else ():
            found = re.search(rf"(?:(?<=\.)|^){pattern}", name)
            candidate = found and name[: found.start()] + new(found, last) + name[found.end() :]
            if candidate in own:
                renamed[name] = candidate
                break
    return renamed


def rename(tensors: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Tensors by name, under the names of the network whose parameters are called `own`."""
    names = weights(tensors, own)
    return {names.get(name, name): value for name, value in tensors.items()}
