"""Import a checkpoint: official file -> weights by name -> our network -> a run directory for sample.py."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion_lab import checkpoint
from diffusion_lab.config.compose import training
from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.config.origin import command
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.interop.files import Found, averaged, find, read
from diffusion_lab.interop.layout import CLASSES, Layout, recognise
from diffusion_lab.model import Model, Training
from diffusion_lab.output import say
from diffusion_lab.run.data import add_augmentation, set_everywhere
from diffusion_lab.run.report import guide_by
from diffusion_lab.storage import hub, safetensors_file
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO
from diffusion_lab.storage.run_directory import checkpoints

SIZES = ("channels", "multipliers", "dilations", "blocks", "attention", "levels", "groups", "up_attention")
"""Settings that decide the names and shapes of a network's weights."""


def import_checkpoint(file: str, overrides: Sequence[str], out: str | None = None) -> Path:
    """Import a checkpoint of another program, or an exported model, and return the run directory.

    Args:
        file: the checkpoint, a folder of diffusers or of an export, or hub:user/name.
        overrides: the arguments with which train.py would train such a model.
        out: the run directory; by default named after the file, under the log directory.

    Raises:
        ConfigError: if the file is refused or does not fit the configuration; nothing is written then.
    """
    settings = training(overrides)
    name = file.rpartition("/")[2] if file.startswith(hub.HUB) else Path(file).resolve().stem
    run_dir = Path(out or Path(settings["paths"]["log_dir"]) / "imported" / name)
    if checkpoints(run_dir):
        raise ConfigError(f"{run_dir} holds a checkpoint already: choose another out=..., or remove it first")
    path = found_file(file)
    if path.is_file() and safetensors_file.is_export(path):
        import_export(path, run_dir, overrides)
        return run_dir
    settings["paths"]["run_dir"] = settings["callback"]["checkpoint"]["run_dir"] = str(run_dir)
    try:
        found = find(read(path))
        found = found._replace(step=step_of(path)) if found.step is None else found
    except (OSError, ValueError) as error:
        named = str(path) in str(error)
        raise ConfigError(str(error) if named else f"{path}: {error}") from error
    if settings["data"].get("augment"):
        add_augmentation(settings["model"], settings["data"]["augment"])
    add_classes(settings, found.raw)
    model = build(settings)
    layout, average = fill(model, found, path, settings)
    target = run_dir / "checkpoints" / f"step_{found.step or 0:08d}.ckpt"
    with as_config_error(OSError, message=f"{target} cannot be written: {{}}"):
        AtomicCheckpointIO().save_checkpoint(contents(model, average, found.step or 0, settings), target)
    report(found, layout, model, path, target)
    return run_dir


def step_of(path: Path) -> int | None:
    """The step in a name of guided-diffusion, modelSTEP.pt or ema_RATE_STEP.pt, of six digits or more; None without."""
    found = re.fullmatch(r"(?:model|ema_[\d.]+_)(\d{6,})", path.stem)
    return int(found[1]) if found else None


def found_file(file: str) -> Path:
    """The file of weights that the argument of the command means."""
    if file.startswith(hub.HUB) or not Path(file).is_dir():
        return hub.weights(file) if file.startswith(hub.HUB) else Path(file)
    found = hub.in_folder(Path(file))
    if found is None:
        raise ConfigError(f"{file} holds none of the files {', '.join(hub.WEIGHTS)}: give the checkpoint itself")
    return found


def import_export(path: Path, run_dir: Path, overrides: Sequence[str]) -> None:
    """Write an exported model as a checkpoint, with its own configuration.

    Raises:
        ConfigError: for overrides, which could only contradict it.
    """
    if overrides:
        raise ConfigError(f"{path} says what its model is: leave out {overrides[0]}")
    found = safetensors_file.read(path)
    model, settings, step = checkpoint.build(found), found["config"], found["global_step"]
    settings["paths"]["run_dir"] = str(run_dir)
    target = run_dir / "checkpoints" / f"step_{step:08d}.ckpt"
    with as_config_error(OSError, message=f"{target} cannot be written: {{}}"):
        AtomicCheckpointIO().save_checkpoint(contents(model, found["ema"]["weights"], step, settings), target)
    say(f"read     {path}: an exported model of step {step:,}, with one set of weights, used both as raw and as EMA")
    say(f"written  {os.path.relpath(target)}")
    say(f"sample from it:  {command('sample', run_dir)}")


def add_classes(settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write the number of classes of the weights into the settings; no null label is trained."""
    predicted = getattr(resolve(settings["model"]["_target_"], "model"), "PREDICTS_LABELS", False)
    count = next((weights[name].shape[dim] for name, dim in CLASSES.items() if name in weights), None)
    if predicted and count is None:
        count = 2  # of any number: the weights are those of another network, and `recognise` says so
    if count is not None:
        set_everywhere(settings["model"]["network"], "outputs" if predicted else "classes", count)
        settings["data"]["conditional"] = True
        settings["model"]["labels"] = {"_target_": "diffusion_lab.model.Labels", "counts": [1] * count, "dropout": 0.0}


def build(settings: dict[str, Any]) -> Training:
    """Build the model of a configuration and check its sampler, if it has one."""
    model = instantiate(settings["model"], "model")
    with as_config_error(ValueError):
        if isinstance(model, Model):
            model.sampler.check(model.denoiser)
    return model


def fill(model: Training, found: Found, path: Path, settings: dict[str, Any]) -> tuple[Layout, dict[str, Tensor]]:
    """Load the raw weights into the model's network; return (their layout, the EMA weights by parameter name)."""
    network = model.network
    with as_config_error(ValueError, message=f"{path}: {{}}"):
        layout = recognise(network, found.raw)
    try:
        layout.check(network, path)
        raw = layout.convert(network, found.raw)
        average = layout.convert(network, averaged(found, layout.order(network)))
    except ValueError as error:
        sizes = ", ".join(f"network.{k}={v}" for k, v in settings["network"].items() if k in SIZES)
        chosen = f"network={settings['choices']['network']} with {sizes}".replace("'", "")
        raise ConfigError(
            f"{path} does not fit {chosen}: {error}; change those settings, or choose another network=..."
        ) from error
    network.load_state_dict(raw)
    return layout, {name: average[name] for name, _ in network.named_parameters()}


def contents(model: Training, average: dict[str, Tensor], step: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of a checkpoint of this package, without the state of the training."""
    ema = settings["callback"]["ema"]
    return {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": pl.__version__,
        "state_dict": model.state_dict(),
        "config": settings,
        "ema": {"decay": ema["decay"], "warmup": ema["warmup"], "updates": step, "weights": average},
    }


def report(found: Found, layout: Layout, model: Training, path: Path, target: Path) -> None:
    """Say what was read, what was written, and how to sample from it."""
    count = sum(p.numel() for p in model.network.parameters())
    step = "step unknown" if found.step is None else f"step {found.step:,}"
    sets = "with raw and EMA weights" if found.average else "with one set of weights, used both as raw and as EMA"
    say(f"read     {path}: {found.kind}, {step}, {sets}")
    kind = f"{type(model).__name__}, {type(model.network).__name__}"
    say(f"model    {kind} with {count:,} parameters, from the layout of {layout.name}")
    if model.labels is not None:
        say(f"labels   {model.labels.classes:,} classes, by number")
    caution = noise_differs(model, found.raw.get("sigmas"))
    if caution:
        say(f"warning  {caution}")
    say(f"written  {os.path.relpath(target)}")
    run_dir = target.parents[1]
    if isinstance(model, Model):
        say(f"sample from it:  {command('sample', run_dir)}")
    else:
        say(guide_by(run_dir))


def noise_differs(model: Training, sigmas: Tensor | None) -> str | None:
    """A warning if the sigmas stored with the official weights differ from those of a variance-exploding process."""
    process = model.denoiser.process
    ends = torch.tensor([1.0, 1 / process.levels if process.levels else 0.0], dtype=torch.float64)
    if sigmas is None or (process.alpha(ends) != 1).any():
        return None
    theirs, ours = torch.stack([sigmas.max(), sigmas.min()]).double(), process.sigma(ends)
    levels = process.levels or len(sigmas)
    if levels == len(sigmas) and torch.allclose(theirs, ours, rtol=1e-3):
        return None
    theirs, ours = [f"{high:g} to {low:g} in {n} levels" for (high, low), n in ((theirs, len(sigmas)), (ours, levels))]
    return f"sigma runs from {theirs} in the file, from {ours} in this configuration: set sigma_max=... or the levels"
