"""Initialise a training from the weights of another: fine-tuning, at step 0, with a new optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffusion_lab import first_edition
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.config.init_source import HUB, fetched
from diffusion_lab.errors import ConfigError
from diffusion_lab.interop import files
from diffusion_lab.interop.layout import recognise
from diffusion_lab.interop.mapping import listed
from diffusion_lab.model import Model
from diffusion_lab.output import say
from diffusion_lab.run.changes import changes
from diffusion_lab.storage import checkpoint_file, hub, safetensors_file
from diffusion_lab.storage.run_directory import find, is_complete
from diffusion_lab.storage.safetensors_file import NETWORK


class Initial(NamedTuple):
    """Initial weights: their file, its description, the weights by our names, and the training configuration."""

    file: Path
    kind: str
    weights: dict[str, Tensor]
    config: dict[str, Any] | None = None


def initialise(model: Model, settings: dict[str, Any]) -> None:
    """Load the weights that `init_from` names into a model's network, and print one line about them.

    `settings["init_from"]` is then the path of the file.

    Raises:
        ConfigError: if it does not exist, holds no such weights, or does not fit and `init_strict` is true.
    """
    place, strict = settings["paths"]["log_dir"], settings["init_strict"]
    found = weights_of(settings["init_from"], model.network, settings["init_weights"], place, strict)
    left = fill(model.network, found, strict)
    settings["init_from"] = str(found.file.resolve())
    message = f"initialised from {found.kind} of {found.file}, step 0"
    message += f"; randomly initialised, because they do not fit: {listed(left)}" if left else ""
    if cluster_ranks()[1] == 0:
        say(message + differences(found.config, settings))


def weights_of(source: str, network: nn.Module, which: str, log_dir: str, strict: bool = True) -> Initial:
    """The weights of a run, a checkpoint of ours or of another program, or from the Hugging Face Hub."""
    path = fetched(source) if source.startswith(HUB) else Path(source).expanduser()
    if source == "last" or source.startswith(hub.HUB) or path.is_dir():
        path = find(source if not path.is_dir() else path, log_dir)
    if not path.is_file():
        raise ConfigError(f"init_from={source} does not exist: give a run directory, a file of weights, or last")
    if is_complete(path) or safetensors_file.is_export(path):
        return of_ours(path, which)
    try:
        found = files.find(files.read(path))
        ours, plain = network.state_dict().keys(), without_prefix(found.raw)
        if 2 * len(ours & plain.keys()) > len(ours):  # other programs share some names, such as conv_in
            return Initial(path, "the weights", plain)
        layout = recognise(network, found.raw)
        if strict:
            layout.check(network, path)
        raw = found.raw if which == "raw" else files.averaged(found, layout.order(network))
        kind = f"the {which} weights" if found.average else "the weights"
        return Initial(path, f"{kind} ({found.kind})", layout.convert(network, raw, strict))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"init_from={source} does not fit this network: {str(error).removeprefix(f'{path} ')}; if its size "
            "differs, add init_strict=false, which leaves out what does not fit"
        ) from error


def of_ours(path: Path, which: str) -> Initial:
    """The weights of a checkpoint of this package."""
    contents = checkpoint_file.read(path)
    state = without_prefix({k: v for k, v in contents["state_dict"].items() if k.startswith(NETWORK)})
    average = (contents.get("ema") or {}).get("weights")
    if which == "ema" and not average:
        raise ConfigError(f"init_from={path} holds no EMA weights: add init_weights=raw")
    weights = {**state, **average} if which == "ema" else state
    return Initial(path, f"the {which} weights of step {contents['global_step']:,}", weights, contents["config"])


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the network's own parameter names."""
    return {name.removeprefix(NETWORK): weight for name, weight in weights.items()}


def fill(network: nn.Module, found: Initial, strict: bool) -> list[str]:
    """Load the weights that fit; return the names of the network's tensors that were not loaded.

    Raises:
        ConfigError: naming them, if all must fit, or if nothing does.
    """
    ours = network.state_dict()
    found = found._replace(weights=first_edition.rename(found.weights, ours))
    shapes = {name: (tuple(found.weights[name].shape) if name in found.weights else None) for name in ours}
    left = [name for name, tensor in ours.items() if shapes[name] != tuple(tensor.shape)]
    unused = [name for name in found.weights if name not in ours]
    if (left or unused) and (strict or len(left) == len(ours)):
        message = [
            f"{name} has shape {shapes[name]} in the file and {tuple(ours[name].shape)} in the network"
            for name in left
            if shapes[name]
        ]
        message += [f"{name} is missing from the file" for name in left if not shapes[name]]
        message += [f"{name} is not in the network" for name in unused]
        more = f", and {len(message) - 3} more" if len(message) > 3 else ""
        advice = "nothing fits: give the network the settings of these weights"
        if len(left) < len(ours):
            advice = "init_strict=false initialises these at random"
        raise ConfigError(f"init_from={found.file} does not fit this network: {'; '.join(message[:3])}{more}; {advice}")
    network.load_state_dict({name: found.weights[name] for name in ours if name not in left}, strict=False)
    return left


def differences(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Describe how the noise process or the network output differs from those these weights were trained with."""
    meaning = ("process.", "output", "c_noise", "levels", "_target_")
    keys = (*(f"model.{key}" for key in meaning), "schedule.", "sigma_")
    if before is None:
        return ""
    message = [change for change in changes(before, now)[0] if change.startswith(keys)]
    return f"; they were trained with a different noise process or output: {', '.join(message[:4])}" if message else ""
