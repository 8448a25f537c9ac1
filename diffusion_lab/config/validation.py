"""Refuse a configuration that cannot work, in one line, before torch is imported."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from diffusion_lab import first_edition
from diffusion_lab.config import declared, schema, trainer_keys
from diffusion_lab.config.batch_size import batch_divides, batch_fits_memory
from diffusion_lab.config.environment import disagreement
from diffusion_lab.config.init_source import missing_source
from diffusion_lab.config.instantiate import allowed, refused
from diffusion_lab.config.labelled import labels_exist
from diffusion_lab.config.network_size import network_takes_size
from diffusion_lab.config.resolvers import BETWEEN_LEVELS
from diffusion_lab.errors import ConfigError

POSITIVE, NOT_NEGATIVE, FRACTION = (0, math.inf, "()"), (0, math.inf, "[)"), (0, 1, "[)")
COUNT = (1, math.inf, "[)")

BOUNDS: dict[str, tuple[float, float, str]] = {
    "accumulate_grad_batches": COUNT, "atol": POSITIVE, "batch_size": COUNT, "beta_max": POSITIVE, "beta_min": POSITIVE,
    "blocks": COUNT, "channels": COUNT, "churn": NOT_NEGATIVE, "count": COUNT, "decay": FRACTION, "decay_steps": COUNT,
    "depth": COUNT, "dropout": FRACTION, "eps": POSITIVE, "eta": (0, 1, "[]"), "eval_batch_size": COUNT,
    "every_n_steps": COUNT, "frames": COUNT, "gamma": POSITIVE, "gradient_clip_val": POSITIVE, "grid": COUNT,
    "heads": COUNT, "held_out_fraction": (0, 1, "()"), "keep": COUNT, "levels": (2, math.inf, "[)"),
    "likelihood_repeats": COUNT, "likelihood_samples": NOT_NEGATIVE, "log_every_n_steps": COUNT, "lr": POSITIVE,
    "max_restarts": NOT_NEGATIVE,
    "max_seconds": POSITIVE, "max_steps": COUNT, "neighbours": (6, math.inf, "[)"), "num_nodes": COUNT,
    "num_samples": COUNT, "num_workers": NOT_NEGATIVE, "prior_std": POSITIVE, "probes": COUNT,
    "refresh_seconds": NOT_NEGATIVE, "repeats": COUNT, "rho": POSITIVE, "rtol": POSITIVE, "s": POSITIVE,
    "s_noise": POSITIVE, "sampler_steps": COUNT, "samples": (2, math.inf, "[)"), "seed": (0, 2**63 - 1, "[]"),
    "sigma": POSITIVE, "sigma_max": POSITIVE, "sigma_min": POSITIVE, "simple_weight": NOT_NEGATIVE, "snr": POSITIVE,
    "step_size": POSITIVE, "steps": COUNT, "t_end": (0, 1, "(]"), "t_start": (0, 1, "(]"), "tau": POSITIVE,
    "terms": COUNT, "timeout": POSITIVE, "val_check_interval": POSITIVE, "vlb_weight": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "width": COUNT, "compare_steps": COUNT,
    "label_dropout": FRACTION, "scale": NOT_NEGATIVE,
}  # fmt: skip
"""Range of every number by the name of its key: (low, high, brackets of a closed or open interval)."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"), "trainer.gradient_clip_algorithm": ("norm",),
    "variance": ("fixed_large", "fixed_small", "learned_range"), "weights": ("ema", "raw"),
}  # fmt: skip
"""Options of keys that are not parameters of our classes."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """ " (did you mean X?)" for the closest of the allowed words, or an empty string."""
    close = difflib.get_close_matches(word, list(map(str, allowed)), 1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def renamed(key: str) -> str:
    """The name that a key of the first edition has now; empty for any other key."""
    last = key.rpartition(".")[2]
    return f" ({last} is called {first_edition.KEYS[last]} now)" if last in first_edition.KEYS else ""


def validate(config: Mapping[str, Any]) -> None:
    """Check a resolved plain configuration against signatures, bounds and the rules between keys.

    Raises:
        ConfigError: naming the key, what is wrong and what is allowed.
    """
    for path, node in nodes(config):
        check_signature(path, node)
        for key, value in node.items():
            check_value(f"{path}.{key}".lstrip("."), value)
    for rule in RULES:
        complaint = rule(config)
        if complaint:
            raise ConfigError(complaint)


def check_network_fits_data(config: Mapping[str, Any]) -> None:
    """Refuse an image network for points and a point network for images.

    Raises:
        ConfigError: naming the network to choose.
    """
    shape, network = _get(config, "data.shape"), config.get("network")
    points = _get(config, "network.dimensions") is not None or _get(config, "network.network.dimensions") is not None
    if isinstance(shape, list) and shape and network and (len(shape) == 1) != points:
        wanted = "network=mlp" if len(shape) == 1 else "an image network, such as network=unet_small"
        raise ConfigError(f"this network cannot take data of shape {list(shape)}: use {wanted}")


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of a configuration with its dotted path."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}".lstrip("."))


def check_signature(path: str, node: Mapping[str, Any]) -> None:
    """A node's keys and values against the signature of its class."""
    target = str(node.get("_target_") or "")
    if "_target_" in node and not target:
        raise ConfigError(
            f"{path}._target_={node['_target_']} names no class: give one, or leave it all out with {path}=null"
        )
    if target and not allowed(target):
        raise refused(path, target)
    ours, known = target.startswith("diffusion_lab."), declared.parameters(path, node)
    if known is None and ours:
        raise ConfigError(f"{path}._target_={target} does not exist")
    for key, value in node.items() if known is not None else ():
        if key in ("_target_", "_partial_") or (not target and key not in known):
            continue
        if key not in known:
            raise ConfigError(
                f"{path}.{key} is not a parameter of {target}{renamed(key) or nearest(key, known)}; "
                f"allowed: {', '.join(known)}"
            )
        reason = schema.mismatch(known[key], value)
        if reason:
            name = f"{path}.{key}".lstrip(".")
            raise ConfigError(f"{name}={value!r} {reason}{nearest(str(value), known[key].options or ())}")
    needed = known if ours else declared.here(path, node) if path == "trainer" else {}
    missing = [k for k, p in needed.items() if p.required and k not in node]
    if missing and not node.get("_partial_"):
        raise ConfigError(f"{path} needs a value for {', '.join(missing)}")


def check_value(path: str, value: Any) -> None:
    """One value against OPTIONS and BOUNDS."""
    allowed = OPTIONS.get(path)
    if allowed and value is not None and str(value) not in allowed:
        raise ConfigError(f"{path}={value} must be one of {', '.join(allowed)}{nearest(str(value), allowed)}")
    key = path.rpartition(".")[2]
    if key not in BOUNDS or value is None or isinstance(value, (bool, Mapping)):
        return
    low, high, ends = BOUNDS[key]
    wanted = f"a number in {ends[0]}{low}, {high}{ends[1]}"
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise ConfigError(f"{path}={value!r} must be {wanted}")
    above = all(number > low or (ends[0] == "[" and number == low) for number in numbers)
    below = all(number < high or (ends[1] == "]" and number == high) for number in numbers)
    if not (above and below):
        raise ConfigError(f"{path}={value} is out of range: it must be {wanted}")


def _get(config: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _ordered(group: str, low: str, high: str) -> Callable[[Mapping[str, Any]], str | None]:
    def rule(config: Mapping[str, Any]) -> str | None:
        a, b = _get(config, f"{group}.{low}"), _get(config, f"{group}.{high}")
        wrong = a is not None and b is not None and not a < b
        return f"{group}.{low}={a} must be smaller than {group}.{high}={b}" if wrong else None

    return rule


def _levels(config: Mapping[str, Any]) -> int | None:
    levels = _get(config, "model.levels") or _get(config, "model.process.levels")
    return levels if isinstance(levels, int) else None


def _steps_within_levels(config: Mapping[str, Any]) -> str | None:
    steps, levels = _get(config, "sampler.steps"), _levels(config)
    free = _get(config, "sampler.spacing") in BETWEEN_LEVELS
    fits = free or not (isinstance(steps, int) and levels) or steps <= levels
    return None if fits else f"sampler.steps={steps} is more than the model's {levels} levels: use at most {levels}"


def _likelihood_fits(config: Mapping[str, Any]) -> str | None:
    if _get(config, "model.likelihood.bound") is not None and _levels(config) is None:
        return "likelihood=bound (or both) needs a model with discrete levels: choose likelihood=flow or none"
    return None


def _one_level_only(config: Mapping[str, Any]) -> str | None:
    if not str(_get(config, "model._target_")).endswith(".ScoreMatching"):
        return None
    if _get(config, "model.likelihood"):
        return "model=score has a single noise level and therefore no likelihood: choose likelihood=none"
    if _get(config, "model.loss.vlb_weight"):
        return "model=score has a single noise level and therefore no variational bound: set loss.vlb_weight=0"
    if _get(config, "sampler.predictor") or str(_get(config, "sampler._target_")).endswith(".ProbabilityFlow"):
        return "model=score has a single noise level, at which only Langevin dynamics can sample: use sampler=langevin"
    return None


def _sde_belongs(config: Mapping[str, Any]) -> str | None:
    target = _get(config, "model._target_")
    if config.get("sde") and target and not str(target).endswith(".ScoreSDE"):
        return "sde=... chooses the process of model=score_sde: add model=score_sde, or leave it out"
    return None


def _differentiates_once(config: Mapping[str, Any]) -> str | None:
    targets = (str(_get(config, "model.loss._target_")), str(_get(config, "network._target_")))
    twice = [t for t in targets if t.endswith((".ImplicitScoreMatching", ".SlicedScoreMatching", ".Energy"))]
    name = twice[0].rpartition(".")[2] if twice else ""
    if config.get("compile") and twice:
        return f"compile=true: {name} needs second derivatives, which torch.compile does not support: set compile=false"
    if _sharded(config) and twice:
        return f"trainer=fsdp does not support the second derivatives of {name}: use trainer=default"
    return None


def _sharded(config: Mapping[str, Any]) -> bool:
    return str(_get(config, "trainer.strategy._target_")).endswith(".Sharded")


def _strategy_exists(config: Mapping[str, Any]) -> str | None:
    strategy, precision = _get(config, "trainer.strategy"), _get(config, "trainer.precision")
    if str(strategy).startswith(("fsdp", "deepspeed")):
        return f"trainer.strategy={strategy} writes checkpoints in another format: use trainer=fsdp"
    if _sharded(config) and precision in ("16-mixed", "64-true"):
        return f"trainer=fsdp does not support trainer.precision={precision}: use 32-true, bf16-mixed or bf16-true"
    return None


def _sampler_moves(config: Mapping[str, Any]) -> str | None:
    sampler = config.get("sampler") or {}
    if str(sampler.get("_target_")).endswith(".Sampler") and not (sampler.get("predictor") or sampler.get("corrector")):
        return (
            "the sampler has neither a predictor nor a corrector: choose sampler/predictor=... or sampler/corrector=..."
        )
    return None


def _sampler_is_whole(config: Mapping[str, Any]) -> str | None:
    lacking = config.get("model") is not None and "_target_" not in (config.get("sampler") or {})
    return "sampler=trained only makes sense for sample.py: choose ancestral, ddim, ..." if lacking else None


RULES: tuple[Callable[[Mapping[str, Any]], str | None], ...] = (
    _ordered("schedule", "sigma_min", "sigma_max"),
    _ordered("schedule", "beta_min", "beta_max"),
    _ordered("schedule", "start", "end"),
    disagreement,
    missing_source,
    batch_divides,
    batch_fits_memory,
    _sampler_is_whole,
    _sampler_moves,
    _steps_within_levels,
    _one_level_only,
    _likelihood_fits,
    _sde_belongs,
    network_takes_size,
    _differentiates_once,
    _strategy_exists,
    trainer_keys.complaint,
    labels_exist,
)
"""Rules between keys; each returns what is wrong, or None."""
