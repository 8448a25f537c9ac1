"""Compare the configuration of a resumed run with the one requested now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion_lab.config.class_rules import leaves
from diffusion_lab.errors import ConfigError
from diffusion_lab.output import listed

OF_THE_START = (
    "allow_changes", "ckpt_path", "init_from", "init_strict", "init_weights", "overrides", "paths", "rehearsal",
    "started",
)  # fmt: skip
"""Keys that belong to one start of a run, not to the run itself."""

HARMLESS = (
    "callback", "choices.likelihood", "choices.metric", "choices.sampler", "compile", "data.data_dir", "data.download",
    "data.eval_batch_size", "data.num_workers", "data.root", "likelihood", "logger", "metric", "model.likelihood",
    "model.network.checkpoint", "model.sampler", "network.checkpoint", "optimized_metric", "sampler", "sampler_steps",
    "report", "trainer", "variance",
    "choices.guidance", "guidance", "model.guidance", "model.labels.counts", "model.labels.names",
)  # fmt: skip
"""Keys that decide where, how long and how fast a run trains, and how it is evaluated, but not what is trained ..."""

HARMFUL = (
    "callback.ema", "callback.rank_seed", "trainer.gradient_clip_val", "trainer.overfit_batches", "trainer.precision",
)  # fmt: skip
"""... except these."""

ADDED = {
    "callback.ema.ramp": 0.05,
    "callback.posthoc_ema._target_": "diffusion_lab.callback.PostHocEMA", "callback.posthoc_ema.stds": [0.05, 0.1],
    "data.augment": 0.0, "data.background": 255, "data.conditional": False, "data.max_pixels": 178_956_970,
    "data.on_corrupt": "refuse", "model.boundary": 0.0, "model.c_noise": "level", "model.learned_range": False,
    "model.network.label_embedding": "table", "model.network.learned_range": False, "model.unit_input": False,
    "logger.mlflow._target_": "diffusion_lab.logger.mlflow.MLflowOptions", "logger.mlflow.enabled": False,
    "logger.mlflow.experiment": "diffusion_lab",
    "logger.trackio._target_": "diffusion_lab.logger.trackio.TrackioOptions", "logger.trackio.enabled": False,
    "logger.trackio.project": "diffusion_lab",
    "loss.coupling": "independent", "model.loss.coupling": "independent", "network.label_embedding": "table",
    "network.learned_range": False, "report": True, "sde.unit_input": False,
}  # fmt: skip
"""Keys that older runs lack, with the values that reproduce the behaviour of those runs."""

TOTAL = ("data.batch_size", "trainer.accumulate_grad_batches")
"""Their product is the number of images per step; how it is split between them is harmless."""


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Differences of two resolved configurations as "key=new (was old)": (those that change what is trained, harmless).

    A key that only one of them has is None in the other. Of a class that was replaced, only the name is listed.
    `ignored` are further harmless keys, such as the location of the data.
    """
    old, new = leaves(before), leaves(now)
    old = {path: value for path, value in ADDED.items() if path in new} | old
    paths = [p for p in dict.fromkeys([*new, *old]) if old.get(p) != new.get(p) and not under(p, OF_THE_START)]
    paths = [path for path in paths if not path.endswith(".run_dir")]
    replaced = [path.removesuffix("_target_") for path in paths if path.endswith("._target_")]
    paths = [p for p in paths if p.endswith("._target_") or not any(p.startswith(node) for node in replaced)]
    equal_total = total(old) == total(new)
    message: tuple[list[str], list[str]] = ([], [])
    for path in paths:
        if any(path.endswith(f".{other}") for other in paths):
            continue  # model.network.channels is network.channels
        divided = path in TOTAL and equal_total
        harmless = divided or (under(path, (*HARMLESS, *ignored)) and not under(path, (*HARMFUL, *TOTAL)))
        message[harmless].append(f"{path}={new.get(path)} (was {old.get(path)})")
    return message


def refuse_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    ranks_before: int,
    ranks_now: int,
    ignored: Sequence[str] = (),
) -> str:
    """Describe what differs from the resumed run; refuse changes to what is trained unless allow_changes is true.

    Raises:
        ConfigError: naming those keys.
    """
    training, harmless = changes(before, now, ignored)
    decay = next((message for message in training if message.startswith(("decay_steps=", "model.decay_steps="))), None)
    typed = any(word.startswith("decay_steps=") for word in now["overrides"])
    end, new_end = (settings["trainer"].get("max_steps") or 0 for settings in (before, now))
    if decay and typed and new_end > end:
        training.remove(decay)
        harmless.append(decay)
        decay = None
    if ranks_before and ranks_before != ranks_now:
        harmless.append(f"{ranks_now} ranks (was {ranks_before}): the same batches, different noise from here on")
    if training and not now["allow_changes"]:
        message = f"this changes what is trained: {listed(training, 8)}; leave it as it was, or add allow_changes=true"
        old, new = (settings.get("model", {}).get("decay_steps") for settings in (before, now))
        if decay and old and new:
            rate = (
                f"the learning rate reached 0 at step {old}; decay_steps={new} extends the decay, decay_steps={old} "
                "keeps it at 0"
            )
            message = f"{rate}: add one of them" if training == [decay] and new_end > end else f"{message}; {rate}"
        raise ConfigError(message)
    return f"; changed: {listed([*training, *harmless], 8)}" if training or harmless else ""


def refuse_shapes(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that do not fit a model, even with allow_changes.

    Raises:
        ConfigError: naming one of them.
    """
    for name in [*now, *before]:
        old, new = (tuple(state[name].shape) if name in state else None for state in (before, now))
        if old != new:
            raise ConfigError(
                f"the checkpoint's weights do not fit this model: {name} has shape {old} there and {new} here"
            )


def total(values: Mapping[str, Any]) -> int:
    """Images per optimiser step."""
    batch, batches = (values[key] for key in TOTAL)
    return batch * batches


def under(path: str, roots: Sequence[str]) -> bool:
    """Whether a dotted path is one of the roots or lies below one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)
