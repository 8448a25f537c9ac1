"""Types and ranges of the keys in conf/ that are not parameters of our classes, declared as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge

from diffusion_lab.config import schema
from diffusion_lab.config.schema import Parameter
from diffusion_lab.ranges import Count, NonNegative, NonNegativeInt, Positive, Probability, Seed, Time


@dataclass
class Train:
    """Keys of conf/train.yaml."""

    variance: Literal["fixed_large", "fixed_small", "learned_range"]
    sigma_min: Positive
    sigma_max: Positive
    sampler_steps: Count | None
    seed: Seed
    warmup_steps: NonNegativeInt
    decay_steps: Count | None
    label_dropout: Probability | None
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
    num_samples: Count
    batch_size: Count
    seed: Seed
    label: Sequence[int | str] | int | str | None
    guide: str | None
    mask: str | None
    t0: Time
    guide_resize: bool
    out: str | None
    weights: Literal["ema", "raw"]
    variance: Literal["fixed_large", "fixed_small", "learned_range"] | None
    sampler_steps: Count | None
    grid: Count
    npz: bool
    png: bool
    trajectory: bool
    evaluate: bool
    likelihood_samples: NonNegativeInt | None
    likelihood_repeats: Count | None
    compile: bool
    data_dir: str | None
    allow_long: bool
    rehearsal: bool
    compare: Sequence[str] | str | None
    compare_steps: Sequence[Count] | Count


@dataclass
class Trainer:
    """Keys of group trainer whose type or range Lightning's signature does not state, and keys of ours."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Sequence[int] | int | str
    num_nodes: Count
    strategy: str
    timeout: Positive
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"]
    max_restarts: NonNegativeInt = 0
    rdzv_endpoint: str | None = None
    max_steps: Count = 100_000
    val_check_interval: Positive | None = None
    gradient_clip_val: Positive | None = None
    gradient_clip_algorithm: Literal["norm"] | None = None
    accumulate_grad_batches: Count = 1
    log_every_n_steps: Count | None = None
    limit_val_batches: NonNegative | None = None
    overfit_batches: NonNegative = 0.0
    num_sanity_val_steps: Annotated[int, Ge(-1)] | None = None


@dataclass
class Optimizer:
    """Ranges of arguments of torch.optim's classes."""

    lr: Positive = 1e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.0


@dataclass
class Metric:
    """Keys of group metric."""

    samples: Annotated[int, Ge(2)] | None
    reference: str | None
    measures: Sequence[str] | None
    repeats: Count | None
    neighbours: Annotated[int, Ge(6)] | None


@dataclass
class Paths:
    """Keys of group paths."""

    root_dir: str
    data_dir: str
    log_dir: str
    statistics_dir: str
    run_dir: str | None


DECLARED = {"trainer": Trainer, "metric": Metric, "paths": Paths, "optimizer": Optimizer}
"""Class of this module that declares each node."""

TRAINED = {"sampler": "diffusion_lab.sampler.Sampler", "guidance": "diffusion_lab.guidance.ClassifierFree"}
"""Class with the keys of sampler=trained and guidance=trained, whose null keeps the checkpoint's value."""


def parameters(path: str, node: Mapping[str, Any]) -> dict[str, Parameter] | None:
    """Parameters that a configuration node may set: those of its class, and those declared here.

    None if they are unknown: for a class whose signature is not available, or which accepts any argument.
    """
    ours = here(path, node)
    if "_target_" not in node:
        loop = schema.parameters(TRAINED[path]) if path in TRAINED else {}
        return {**{key: replace(p, hint=p.hint | None) for key, p in loop.items()}, **ours}
    found = schema.parameters(str(node["_target_"]))
    return None if found is None else {**found, **ours}


def here(path: str, node: Mapping[str, Any]) -> dict[str, Parameter]:
    """Parameters that this module declares for a configuration node."""
    cls = (Sample if "num_samples" in node else Train) if path == "" else DECLARED.get(path)
    declared = schema.parameters(f"{__name__}.{cls.__name__}") if cls else {}
    known = schema.parameters(str(node["_target_"])) if cls is Optimizer and "_target_" in node else declared
    return {key: parameter for key, parameter in declared.items() if key in (known or {})}
