"""The specification that determines a set of samples, and the directory named after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.model import Model
from diffusion_lab.storage.atomic_file import write_json
from diffusion_lab.storage.revision import revision
from diffusion_lab.storage.run_directory import REQUEST, RESULTS

WRITTEN = ("samples", "samples.npz", "noise.npy", "samples.png", "png", "trajectory.png", "control.png", RESULTS,
           "report.html")  # fmt: skip
"""Other files that sampling writes into the directory."""

NOT_THE_MODEL = ("sampler", "likelihood", "guidance", "optimizer", "loss", "warmup_steps", "decay_steps")
"""Settings of a model that samples do not depend on, or that the spec contains itself."""

SampleSpec = dict[str, Any]


def sample_spec(
    contents: dict[str, Any], model: nn.Module, weights: str, sampler: dict[str, Any], precision: str, **more: Any
) -> SampleSpec:
    """Everything that a sample depends on; equal specs give equal files.

    `more`: seed, batch_size (a different batch shape rounds differently) and device type.
    """
    choices = contents["config"].get("choices", {})
    # The weights do not contain the noise process, the range of images or the groups of a normalisation.
    model_settings = {k: v for k, v in contents["config"].get("model", {}).items() if k not in NOT_THE_MODEL}
    described = json.dumps(model_settings, sort_keys=True, default=str)
    return {
        "model": choices.get("model", "model"),
        "data": choices.get("data", "data"),
        "step": contents["global_step"],
        "weights": weights,
        "weights_digest": digest_of(model),
        "model_digest": hashlib.sha256(described.encode()).hexdigest(),
        "sampler": sampler,
        "precision": precision,
        **more,
    }


def conditioning_spec(model: Model) -> dict[str, Any]:
    """The part of a sample spec that only models with labels, guidance or control have."""
    spec: dict[str, Any] = {}
    if (labels := model.sampled_labels()) is not None:
        spec["label"] = labels.numbers(model.label) or labels.describe(model.label)
    if model.guidance is not None:
        spec["guidance"] = described(model.guidance)
    if model.control is not None:
        spec["control"] = {"name": model.control.name} | described(model.control)
    return spec


def described(value: Any) -> Any:
    """A setting: a number or name itself, a network or an array by its digest, another object by its settings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Denoiser):
        return digest_of(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return hashlib.sha256(
            torch.as_tensor(value).detach().cpu().resolve_conj().contiguous().numpy().tobytes()
        ).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [described(one) for one in value]
    settings = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):  # without torch's own attributes
        settings = {key: one for key, one in settings.items() if not key.startswith("_")}
        settings |= dict(value.named_parameters()) | dict(value.named_buffers())
    return {"kind": type(value).__name__} | {key: described(one) for key, one in settings.items()}


def digest_of(model: nn.Module) -> str:
    """The sha256 of a model's tensors by name, on any device."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder(wanted: SampleSpec, name: str, log_dir: str | Path, out: str | None) -> Path:
    """The directory of the samples: `out`, or one named after the spec.

    The same command thus resumes where it was stopped, and further samples join the existing ones.
    """
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:8]
    sampler = f"{name}{wanted['sampler'].get('steps') or ''}"
    place = f"{wanted['model']}_{wanted['data']}_step{wanted['step']}_{sampler}_{digest}"
    return Path(out) if out else Path(log_dir) / "sample" / place


def claim(path: Path, wanted: SampleSpec) -> None:
    """Create the directory of a sample spec, with the spec and the code's revision in request.json.

    Raises:
        ConfigError: if it holds samples of a different spec, naming what differs, or files that sampling would
            overwrite.
    """
    file = path / REQUEST
    if file.is_file():
        found = {k: v for k, v in json.loads(file.read_text()).items() if k != "revision"}
        different = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        if different:
            message = "; ".join(f"{k} {found.get(k)} there, {wanted.get(k)} requested" for k in different)
            raise ConfigError(f"{path} holds samples with other settings ({message}): choose another out=...")
    else:
        if foreign := [name for name in WRITTEN if (path / name).exists()]:
            raise ConfigError(
                f"{path} holds {', '.join(foreign)}, not written by sample.py, which would overwrite it: "
                "choose another out=..."
            )
        path.mkdir(parents=True, exist_ok=True)
        write_json(file, {**wanted, "revision": revision()})
