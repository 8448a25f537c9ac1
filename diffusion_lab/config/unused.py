"""Refuse overrides without any effect, with the reason and what works instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from diffusion_lab.config.class_rules import entries
from diffusion_lab.config.directories import option_file, options
from diffusion_lab.errors import ConfigError

OF_THE_SAMPLER = ("variance", "sampler_steps")

REFERRED = (
    *(*OF_THE_SAMPLER, "sigma_min", "sigma_max", "warmup_steps", "decay_steps"),
    *("schedule", "loss", "time_law", "network", "optimizer", "sde", "sampler", "likelihood", "guidance", "metric"),
)
"""Keys and groups that only have an effect if another key refers to them."""

WHILE_TRAINING = {
    "likelihood_samples": "for the evaluation at the end, set callback.evaluation.evaluator.likelihood_samples",
    "samples": "for the evaluation at the end, set metric.samples",
    "max_seconds": "the evaluation at the end has no time limit",
}
"""Keys of callback.evaluation that the evaluation at the end of a training ignores."""

OF_SAMPLING = (
    (("likelihood", "likelihood_samples", "likelihood_repeats"), lambda c: c["evaluate"],
     "without evaluate=true: add it"),
    (("data_dir",), lambda c: c["evaluate"] or c["compare"], "without evaluate=true or compare=[...]: add one of them"),
    (("metric",), lambda c: c["evaluate"] or c["compare"], "without evaluate=true or compare=[...]: add one of them"),
    (("guide", "mask", "guide_resize"), lambda c: c["control"],
     "without a control: choose control=sdedit, inpaint, colorize, ..."),
    (("t0",), lambda c: "t0" in (c["control"] or {}), "without control=sdedit: add it, or leave it out"),
    (("compare_steps",), lambda c: c["compare"], "without compare=[...]: add it"),
    (("grid", "png", "trajectory", "sampler"), lambda c: not c["compare"],
     "with compare, which uses the samplers of its list and writes no images: leave it out"),
)  # fmt: skip
"""Keys or groups of sample.py, the condition under which they have an effect, and what to do otherwise."""


def refuse_unused(jobs: Sequence[Mapping[str, str]]) -> None:
    """Refuse a setting that has no effect in any job.

    Args:
        jobs: for each job, the overrides without effect, as typed, and the reasons.

    Raises:
        ConfigError: naming the first one.
    """
    always = [word for word in jobs[0] if all(word in job for job in jobs)] if jobs else []
    if always:
        raise ConfigError(f"{always[0]} has no effect{jobs[0][always[0]]}")


def unused(overrides: Sequence[Override], raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Overrides without effect in a job, and why; `raw` is the unresolved configuration, `settings` resolved."""
    message = {}
    for override in overrides:
        key = override.key_or_group.replace("/", ".")
        if override.is_delete() or override.value() in (None, False, "trained", "none") or key.startswith("hydra"):
            continue
        reason = next(iter(_reasons(key, raw, settings)), None)
        if reason is not None:
            message[override.input_line] = reason
    return message


def _reasons(key: str, raw: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Why a key has no effect, as the end of a sentence."""
    root, parent = key.partition(".")[0], key.rpartition(".")[0]
    if key in dict(entries(raw)) and parent and parent not in dict(entries(settings)):
        yield f": there is no {parent}"
    if "num_samples" in settings:
        for keys, met, message in OF_SAMPLING:
            if root in keys and not met(settings):
                yield f" {message}"
    referred = OF_THE_SAMPLER if "num_samples" in settings else REFERRED
    if root in referred and not _referred(root, raw) and not settings.get("compare"):
        yield f": nothing chosen here uses it{_users(root)}"
    evaluation = (settings.get("callback") or {}).get("evaluation") or {}
    if parent == "callback.evaluation" and evaluation and evaluation.get("every_n_steps") is None:
        advice = WHILE_TRAINING.get(key.rpartition(".")[2])
        if advice:
            yield f" without callback.evaluation.every_n_steps: it applies to evaluations during training; {advice}"
    for name, logger in (settings.get("logger") or {}).items():
        if parent == f"logger.{name}" and logger.get("enabled") is False and key != f"{parent}.enabled":
            yield f": {parent}.enabled is false; choose logger={name}"


def _referred(key: str, raw: Mapping[str, Any]) -> bool:
    """Whether any value of an unresolved configuration refers to a key or to part of its value."""
    pattern = re.compile(rf"\$\{{{key}[.}}\[]")
    return any(pattern.search(str(value)) for _, value in entries(raw) if value)


def _users(key: str) -> str:
    """The options whose files refer to a key, as the end of a sentence."""
    groups = ("sampler/predictor", "sampler", "likelihood", "schedule", "model")
    pattern = re.compile(rf"\$\{{{key}[.}}]")
    found = [f"{g}={n}" for g in groups for n in options(g) if pattern.search(option_file(g, n).read_text())]
    return f"; {', '.join(found[:4])} {'does' if len(found) == 1 else 'do'}" if found else ""
