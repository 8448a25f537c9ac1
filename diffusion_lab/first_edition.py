"""Old and new names, so that checkpoints and runs of earlier versions stay usable."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

KEYS = {"told": "c_noise"}
"""Renamed configuration keys."""

CLASSES = {
    "diffusion_lab.process.Ladder": "diffusion_lab.process.DiscreteProcess",
    "diffusion_lab.callback.Guard": "diffusion_lab.callback.NonFiniteGuard",
    "diffusion_lab.launch.wandb_logger.": "diffusion_lab.logger.wandb.",
    "diffusion_lab.launch.tensorboard_logger.": "diffusion_lab.logger.tensorboard.",
}
"""Renamed classes and modules in configurations."""

TIME_LAWS = {"uniform": "Uniform", "importance": "Importance", "loss_second_moment": "LossSecondMoment"}
"""Classes of the time laws of earlier versions, in which loss.times chose one of the first two."""

LOSSES = ("DenoisingLoss", "HybridLoss", "ImplicitScoreMatching", "SlicedScoreMatching", "CrossEntropy")
"""Losses that have a time law."""

PREFIXES = {"loss.times": "time_law", "loss.time_law": "time_law"}
"""Keys that moved."""

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
"""Renamed parameters of U-Nets, RefineNets and MLPs, as suffixes; `last` is the index of the lowest resolution."""


def settings(node: Any) -> Any:
    """Return a plain configuration with the new names."""
    if isinstance(node, Mapping):
        return with_time_law({KEYS.get(key, key): settings(value) for key, value in node.items()})
    if isinstance(node, list):
        return [settings(value) for value in node]
    return replaced(node) if isinstance(node, str) else node


def with_time_law(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node of a configuration, with the time law of a loss, or of the run, as a node of its own."""
    if node.get("_target_") in [f"diffusion_lab.loss.{name}" for name in LOSSES] and not node.get("time_law"):
        chosen = TIME_LAWS[node.pop("times", "uniform")]
        node["time_law"] = {"_target_": f"diffusion_lab.loss.{chosen}"}
    law = node["loss"].get("time_law") if isinstance(node.get("loss"), dict) else None
    if law and "choices" in node and "time_law" not in node:
        names = {f"diffusion_lab.loss.{target}": name for name, target in TIME_LAWS.items()}
        node["time_law"], node["choices"]["time_law"] = law, names.get(law["_target_"])
    return node


def override(line: str) -> str:
    """Return an override such as sde.told=level with the new names."""
    key, equals, value = line.partition("=")
    for old, new in KEYS.items():
        key = re.sub(rf"(^|[.+~]){old}$", rf"\g<1>{new}", key)
    for old, new in PREFIXES.items():
        key = re.sub(rf"^{re.escape(old)}(?=$|[.])", new, key)
    return key + equals + replaced(value)


def replaced(text: str) -> str:
    """Return a text with the new names of classes."""
    for old, new in CLASSES.items():
        text = re.sub(rf"{re.escape(old)}(?!\w)" if old[-1] != "." else re.escape(old), new, text)
    return text


def weights(names: Iterable[str], expected: Collection[str]) -> dict[str, str]:
    """Map parameter names of a checkpoint to those the network expects, where the two differ."""
    names = list(names)
    levels = [int(match[1]) for name in names if (match := re.search(r"(?:^|\.)down\.(\d+)\.", name))]
    last, renamed = max(levels, default=0), {}
    for name in names if not {*names} <= {*expected} else ():
        for pattern, new in WEIGHTS if name not in expected else ():
            match = re.search(rf"(?:(?<=\.)|^){pattern}", name)
            candidate = match and name[: match.start()] + new(match, last) + name[match.end() :]
            if candidate in expected:
                renamed[name] = candidate
                break
    return renamed


def rename(tensors: Mapping[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """Return tensors by name under the parameter names that the network expects."""
    names = weights(tensors, expected)
    return {names.get(name, name): value for name, value in tensors.items()}
