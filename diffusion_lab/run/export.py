"""Export a model: a folder with its weights, its configuration and a model card, for others to use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab import checkpoint
from diffusion_lab.checkpoint import Weights
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.named_sampler import sampler_settings
from diffusion_lab.config.packages import RECORD
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.evaluation.results import read_results
from diffusion_lab.interop.diffusers_folder import folder
from diffusion_lab.interop.diffusers_scheduler import Pipeline
from diffusion_lab.model import Model, Training
from diffusion_lab.output import say
from diffusion_lab.run.model_card import Card
from diffusion_lab.storage import checkpoint_file, hub, safetensors_file
from diffusion_lab.storage.atomic_file import write_json, write_text
from diffusion_lab.storage.revision import revision
from diffusion_lab.storage.run_directory import RESULTS

PLACE = re.compile(r"[/~]|[A-Za-z]:[\\/]")
"""Beginning of a path of this machine, which an export must not contain."""


def export(
    path: Path, form: str, out: Path, weights: Weights, sampler: Sequence[str] = (), push: str | None = None
) -> None:
    """Write the model of a checkpoint into the folder `out`, and upload it if `push` names a repository.

    Args:
        form: a key of `FORMATS`.
        weights: the EMA or the raw weights.
        sampler: overrides for the scheduler of diffusers, such as sampler=ddim and sampler.steps=50.

    Raises:
        ConfigError: if the format has no such model, or the file no such weights; nothing is written then.
    """
    contents = checkpoint_file.read(path)
    if contents.get("exported") not in (None, weights):
        raise ConfigError(f"{path} holds {contents['exported']} weights alone: say weights={contents['exported']}")
    model, config, step = checkpoint.build(contents, weights), shared(contents["config"]), contents["global_step"]
    if sampler and isinstance(model, Model):
        config["model"]["sampler"] = chosen(sampler, contents["config"])
        model.sampler = instantiate(config["model"]["sampler"], "sampler")
    files, pipeline = FORMATS[form](model)
    place = push and (push if pipeline else f"{hub.HUB}{push}")
    results = results_of(path, step, weights)
    files["README.md"] = Card(model, config, step, weights, results, pipeline, place or ".").text()
    header = {"revision": revision(), "config": config, "step": step, "weights": weights} if pipeline is None else None
    with as_config_error(OSError):
        for name, content in files.items():
            write(out / name, content, header)
    count = sum(p.numel() for p in model.network.parameters())
    say(f"read     {os.path.relpath(path)}: {weights} weights of step {step:,}, {count:,} parameters")
    say(f"written  {os.path.relpath(out)}: {', '.join(files)}")
    if push:
        say(f"uploaded to {hub.upload(out, push, f'Step {step}, {weights} weights')}")


def to_safetensors(model: Training) -> tuple[dict[str, Any], None]:
    """(the files, None): one file with all tensors of the model."""
    return {hub.EXPORTED: model.state_dict()}, None


def to_diffusers(model: Training) -> tuple[dict[str, Any], Pipeline]:
    """(the files of diffusers' pipeline, the pipeline).

    Raises:
        ConfigError: if diffusers has no such model.
    """
    if not isinstance(model, Model) or model.guidance is not None:
        what = "classifiers" if not isinstance(model, Model) else "guided models"
        raise ConfigError(f"diffusers has no pipeline for {what}: choose format=safetensors")
    with as_config_error(ValueError):
        model.sampler.check(model.denoiser)
    with as_config_error(ValueError, message="diffusers has {}; or choose format=safetensors"):
        return folder(model.denoiser, model.sampler, model.shape)


FORMATS: dict[str, Callable[[Training], tuple[dict[str, Any], Pipeline | None]]] = {
    "safetensors": to_safetensors,
    "diffusers": to_diffusers,
}
"""Format -> the contents of its files, and diffusers' pipeline."""


def chosen(overrides: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the sampler that overrides such as sampler=ddim and sampler.steps=50 describe."""
    name = next(one.removeprefix("sampler=") for one in overrides if one.startswith("sampler="))
    keys = [one.removeprefix("sampler.") for one in overrides if one.startswith("sampler.")]
    return sampler_settings(name, config.get("variance") or "fixed_large", keys, config.get("sampler_steps"))


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration for others: without paths of this machine, loggers, and guidance by another checkpoint."""
    config = without_places(config)
    packages = (config.get(RECORD) or {}).get("packages")
    config[RECORD] = {"packages": packages, "directory": "the directory of its training"} if packages else None
    config["logger"] = {}
    if (config["model"].get("guidance") or {}).get("ckpt_path", "") != "":
        config["model"]["guidance"] = config["guidance"] = {}
    return config


def without_places(value: Any) -> Any:
    """Plain containers with None for every path of this machine, and without overrides that are one."""
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value if not is_place(str(one).partition("=")[2])]
    return None if is_place(value) else value


def is_place(value: Any) -> bool:
    """Whether a setting is a path of this machine."""
    return isinstance(value, str) and PLACE.match(value) is not None


def results_of(path: Path, step: int, weights: str) -> dict[str, Any] | None:
    """The results of these weights in the directory of their run; None if they were not evaluated."""
    if path.parent.name != "checkpoints":
        return None
    found = read_results(path.parents[1] / RESULTS)
    return found if found is not None and (found.get("step"), found.get("weights")) == (step, weights) else None


def write(file: Path, content: Any, described: dict[str, Any] | None) -> None:
    """Write weights by name, a table as JSON, or a text."""
    if file.suffix == safetensors_file.SUFFIX:
        safetensors_file.write(file, content, described)
    elif isinstance(content, str):
        write_text(file, content)
    else:
        write_json(file, content)
