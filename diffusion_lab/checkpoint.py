"""Load a model from a checkpoint."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from diffusion_lab import first_edition
from diffusion_lab.config import packages
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.guidance import Autoguidance, ClassifierGuidance
from diffusion_lab.guidance.classifier import Form
from diffusion_lab.guidance.guided import NoiseInterval
from diffusion_lab.loss import FrozenDenoiser
from diffusion_lab.model import Classifier, Model, Training
from diffusion_lab.ranges import NonNegative
from diffusion_lab.storage.checkpoint_file import read
from diffusion_lab.storage.run_directory import CheckpointError, find

Weights = Literal["ema", "raw"]

SAMPLED = "a model that can be sampled from"


def build(contents: dict[str, Any], weights: Weights = "ema") -> Training:
    """Build the model from a checkpoint's contents: from its configuration, with the chosen weights, in eval mode.

    Raises:
        CheckpointError: if `weights` is invalid, or the weights are missing or do not fit the configuration.
    """
    if weights not in get_args(Weights):
        raise CheckpointError(f"weights={weights!r} must be {' or '.join(get_args(Weights))}")
    recorded = contents["config"].get(packages.RECORD)
    packages.admit(recorded)
    try:
        model = instantiate(contents["config"]["model"], "model")
    except ConfigError as error:
        raise CheckpointError(f"{error}{packages.lacking(recorded)}") from error
    expected = model.state_dict()
    state = first_edition.rename(contents["state_dict"], expected)
    # The networks of a loss, such as a discriminator, are made when a training starts.
    state = {name: value for name, value in state.items() if name in expected or not name.startswith("loss.")}
    if weights == "ema":
        ema = contents.get("ema", {}).get("weights")
        if not ema:
            raise CheckpointError("the checkpoint holds no EMA weights: use weights=raw")
        state |= first_edition.rename({f"denoiser.network.{name}": value for name, value in ema.items()}, expected)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration: {error}") from error
    model.config = contents["config"]
    if isinstance(model, Model):
        model.sampler_of = functools.partial(named_sampler, contents["config"])
    return model.eval()


def named_sampler(config: dict[str, Any], name: str) -> Any:
    """Build the sampler that `sample.py sampler=<name>` uses for a model trained with this configuration."""
    from diffusion_lab.config.named_sampler import named_sampler  # needs Hydra, which `load` does not import

    return named_sampler(config, name)


def device_of(name: str | torch.device) -> torch.device:
    """Return the device of this name after checking that it works.

    Raises:
        ValueError: if the name is invalid or this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # backends raise different errors if they are missing
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"device={name!r} is not on this machine: choose from {', '.join(available)}") from error
    return device


def load(path: str | Path, *, weights: Weights = "ema", device: str | torch.device = "cpu") -> Training:
    """Load the model of a run directory, a checkpoint or exported file, "last" (the newest run), or "hub:user/name".

    It is ready to `.sample(...)`; the repository of the Hugging Face Hub must hold an export of this package.

    A run of model=classifier gives a `model.Classifier` for `guidance.ClassifierGuidance`.

    >>> model = diffusion_lab.load("logs/train/ddpm_digits/2026-11-21_10-00-00")
    >>> images = model.sample(16)

    Raises:
        ValueError: if `weights` or `device` is invalid, or the path has no readable checkpoint.
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"load({path!r}): give the path of a run directory or a .ckpt file, or 'last'")
    device = device_of(device)
    contents = read(find(Path(path).expanduser()))
    with torch.inference_mode(False):  # autograd cannot use parameters created in inference mode
        return build(contents, weights).to(device)


class AutoguidanceOf(Autoguidance):
    """Autoguidance by the model of a checkpoint, which is loaded on first use.

    Args:
        ckpt_path: a run directory or a checkpoint file.
        scale, interval: as in `Autoguidance`.
        weights: the EMA or the raw weights of the checkpoint.
    """

    def __init__(
        self,
        ckpt_path: str,
        scale: NonNegative = 1.5,
        interval: NoiseInterval | None = None,
        weights: Weights = "ema",
    ) -> None:
        super().__init__(functools.partial(_denoiser, ckpt_path, weights, Model, SAMPLED), scale, interval)


class ClassifierGuidanceOf(ClassifierGuidance):
    """Classifier guidance by the classifier of a checkpoint, which is loaded on first use.

    Args:
        ckpt_path: a run directory or a checkpoint file of `model.Classifier`.
        scale, interval, form: as in `ClassifierGuidance`.
        weights: the EMA or the raw weights of the checkpoint.
    """

    def __init__(
        self,
        ckpt_path: str,
        scale: NonNegative = 1.0,
        interval: NoiseInterval | None = None,
        form: Form = "score",
        weights: Weights = "ema",
    ) -> None:
        super().__init__(
            functools.partial(_denoiser, ckpt_path, weights, Classifier, "model=classifier"),
            None,
            scale,
            interval,
            form,
        )


class Teacher(FrozenDenoiser):
    """The denoiser of a checkpoint from which a student learns, loaded on first use.

    Args:
        ckpt_path: a run directory or a checkpoint file.
        weights: the EMA or the raw weights of the checkpoint.

    Raises:
        ValueError: for ckpt_path="last", which is another run when this one resumes.
    """

    def __init__(self, ckpt_path: str, weights: Weights = "ema") -> None:
        if str(ckpt_path) == "last":
            raise ValueError("ckpt_path=last is the student itself when its run resumes: name the run of the teacher")
        super().__init__(functools.partial(_model, "loss.teacher", ckpt_path, weights, Model, SAMPLED))


def _denoiser(path: str, weights: Weights, wanted: type[Training], what: str) -> Denoiser:
    """The denoiser of a checkpoint that guides."""
    return _model("guidance", path, weights, wanted, what).denoiser.requires_grad_(False)


def _model(key: str, path: str, weights: Weights, wanted: type[Training], what: str) -> Training:
    """The model of a checkpoint, of the wanted class; errors name `<key>.ckpt_path`."""
    try:
        model = load(path, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(f"{key}.{error}" if str(error).startswith("ckpt_path=") else str(error)) from error
    if not isinstance(model, wanted):
        raise CheckpointError(f"{key}.ckpt_path={path} holds a {type(model).__name__}: give a run of {what}")
    return model
