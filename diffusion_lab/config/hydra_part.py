"""Check overrides of Hydra's own configuration: they must exist, be installed, and have an effect."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf

from diffusion_lab.config.class_rules import entries
from diffusion_lab.config.refusals import composed_by_hydra, first_line
from diffusion_lab.config.validation import nearest
from diffusion_lab.errors import ConfigError, refuse

EXTRAS = {"hydra/launcher": ("joblib", "submitit_slurm", "submitit_local"), "hydra/sweeper": ("optuna",)}
"""Launchers and sweepers installed by an extra of the package."""

BUILT = ("hydra", "hydra_plugins", "diffusion_lab")
"""Packages whose classes Hydra may build."""


def check_hydra(task: str, overrides: Sequence[Override], sweep: bool) -> None:
    """Refuse what does not exist, is not installed, or has no effect without a sweep.

    Raises:
        ConfigError: for a missing plug-in with the command that installs it.
    """
    of_hydra = [o for o in overrides if o.key_or_group.startswith("hydra")]
    swept = sweep or any(o.key_or_group == "hydra.mode" for o in of_hydra)
    drawn = next((o.input_line for o in overrides if isinstance(o.value(), IntervalSweep)), None)
    if drawn and not any(o.key_or_group == "hydra/sweeper" and str(o.value()) != "basic" for o in of_hydra):
        raise ConfigError(f"{drawn} needs an optimising sweeper: add hydra/sweeper=optuna, or give values a,b,c")
    for override in of_hydra:
        _check_group(override, swept)
    if not of_hydra:
        return
    config = composed_by_hydra(task, [o.input_line for o in of_hydra], with_hydra=True)
    keys = {path for path, _ in entries(OmegaConf.to_container(config, resolve=False))}
    for override in of_hydra:
        lost = [key for key in re.findall(r"\$\{([\w.]+)\}", override.input_line) if key not in keys]
        if lost:
            raise ConfigError(f"{override.input_line}: ${{{lost[0]}}} refers to a key that does not exist")


def _check_group(override: Override, sweep: bool) -> None:
    """Check one override of Hydra's own configuration: a plug-in, a class, a new key."""
    key, name = override.key_or_group, str(override.value())
    if key == "hydra" and (override.value() is None or override.is_delete()):
        raise ConfigError(f"{override.input_line}: hydra cannot be left out")
    if key.startswith("hydra/"):
        there = GlobalHydra.instance().config_loader().get_group_options(key)
        extras = EXTRAS.get(key, ())
        if name not in there and name in extras:
            raise ConfigError(f'{key}={name} is not installed: pip install -e ".[sweep]"')
        if there and name not in there:
            names = sorted({*there, *extras})
            raise ConfigError(
                f"{key}={name} is not an option of {key}{nearest(name, names)}; allowed: {', '.join(names)}"
            )
        if key in EXTRAS and not sweep:
            raise ConfigError(f"{key}={name} only applies to sweeps: add -m")
    elif key.endswith("._target_") and name.partition(".")[0] not in BUILT:
        raise ConfigError(f"{override.input_line} is refused: only classes of {', '.join(BUILT)} are built there")
    elif (override.is_add() or override.is_force_add()) and key.count(".") == 1:
        raise ConfigError(f"{key} has no effect: leave it out")


def refuse_failure(overrides: Sequence[str], error: Exception) -> None:
    """Refuse in one line what Hydra raised outside a job, naming the overrides of Hydra's own configuration."""
    of_hydra = [word for word in overrides if word.lstrip("+~").startswith("hydra")]
    message = first_line(error)
    named = not of_hydra or any(word.partition("=")[0].lstrip("+~") in message for word in of_hydra)
    refuse(ConfigError(message if named else f"{', '.join(of_hydra)}: {message}"))
