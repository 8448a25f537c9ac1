"""Types of the keys in conf/ that are not parameters of a class, declared as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffusion_lab.config import schema
from diffusion_lab.config.schema import Parameter


@dataclass
class Train:
    """Keys of conf/train.yaml."""

    variance: Literal["fixed_large", "fixed_small", "learned_range"]
    sigma_min: float
    sigma_max: float
    sampler_steps: int | None
    seed: int
    warmup_steps: int
    decay_steps: int | None
    label_dropout: float | None
    compile: bool
    ckpt_path: str | None
    allow_changes: bool
    rehearsal: bool
    init_from: str | None
    init_weights: Literal["ema", "raw"]
    init_strict: bool
    optimized_metric: str | None


@dataclass
class Sample:
    """Keys of conf/sample.yaml."""

    ckpt_path: str
    num_samples: int
    batch_size: int
    seed: int
    label: Sequence[int | str] | int | str | None
    guide: str | None
    mask: str | None
    t0: float
    guide_resize: bool
    out: str | None
    weights: Literal["ema", "raw"]
    variance: Literal["fixed_large", "fixed_small", "learned_range"] | None
    sampler_steps: int | None
    grid: int
    npz: bool
    png: bool
    trajectory: bool
    evaluate: bool
    likelihood_samples: int | None
    likelihood_repeats: int | None
    compile: bool
    data_dir: str | None
    allow_long: bool
    rehearsal: bool
    compare: Sequence[str] | str | None
    compare_steps: Sequence[int] | int


@dataclass
class Trainer:
    """Keys of group trainer and of conf/sample.yaml that Lightning's signature does not type or does not have."""

    accelerator: str
    devices: Sequence[int] | int | str
    num_nodes: int
    strategy: str
    timeout: float
    precision: str
    max_restarts: int = 0
    rdzv_endpoint: str | None = None
    max_steps: int = -1
    val_check_interval: float | int | None = None


@dataclass
class Metric:
    """Keys of group metric."""

    samples: int | None
    reference: str | None
    measures: Sequence[str] | None
    repeats: int | None
    neighbours: int | None


@dataclass
class Paths:
    """Keys of group paths."""

    root_dir: str
    data_dir: str
    log_dir: str
    statistics_dir: str
    run_dir: str | None


DECLARED = {"trainer": "Trainer", "metric": "Metric", "paths": "Paths"}
"""Class of this module that declares each node."""


def parameters(path: str, node: Mapping[str, Any]) -> dict[str, Parameter] | None:
    """Parameters that a configuration node may set: those of its class, and those declared here.

    None if they are unknown: for a class whose signature is not available, or which accepts any argument.
    """
    own = here(path, node)
    if "_target_" not in node:
        # sampler=trained: null keeps the checkpoint's value
        loop = schema.parameters("diffusion_lab.sampler.Sampler") if path == "sampler" else {}
        return {**{k: replace(p, types=p.types and (*p.types, type(None))) for k, p in loop.items()}, **own}
    found = schema.parameters(str(node["_target_"]))
    return None if found is None else {**found, **own}


def here(path: str, node: Mapping[str, Any]) -> dict[str, Parameter]:
    """Parameters that this module declares for a configuration node."""
    name = DECLARED.get(path) or (("Sample" if "num_samples" in node else "Train") if path == "" else None)
    return (schema.parameters(f"{__name__}.{name}") if name else None) or {}
