"""What a command line sets of Hydra's own part: it must exist, be installed, and be of use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.launch.instantiate import ConfigError
from diffusion_lab.launch.refusals import first_line
from diffusion_lab.launch.validation import nearest, nodes

EXTRAS = {"hydra/launcher": ("joblib", "submitit_slurm", "submitit_local"), "hydra/sweeper": ("optuna",)}
"""Launchers and sweepers that come with an extra of the package."""

BUILT = ("hydra.", "hydra_plugins.", "diffusion_lab.")
"""Packages whose classes Hydra may build."""


def check_hydra(task: str, overrides: Sequence[Override], sweep: bool) -> None:
    """Refuse what does not exist, is not installed, or has no effect without a sweep.

    Raises:
        ConfigError: in one line, for a plug-in with the command that installs it.
    """
    own = [o for o in overrides if o.key_or_group.startswith("hydra")]
    swept = sweep or any(o.key_or_group == "hydra.mode" for o in own)
    drawn = next((o.input_line for o in overrides if isinstance(o.value(), IntervalSweep)), None)
    if drawn and not any(o.key_or_group == "hydra/sweeper" and str(o.value()) != "basic" for o in own):
        raise ConfigError(f"{drawn} is drawn by an optimising sweeper: add hydra/sweeper=optuna, or give values a,b,c")
    for override in own:
        _check_group(override, swept)
    if not own:
        return
    try:
        config = compose(task, [o.input_line for o in own], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    raw = OmegaConf.to_container(config, resolve=False)
    keys = {f"{path}.{key}".lstrip(".") for path, node in nodes(raw) for key in node}
    for override in own:
        lost = [key for key in re.findall(r"\$\{([\w.]+)\}", override.input_line) if key not in keys]
        if lost:
            raise ConfigError(f"{override.input_line}: ${{{lost[0]}}} refers to a key that does not exist")


def _check_group(override: Override, sweep: bool) -> None:
    """One override of Hydra's own part: a plug-in, a class, a new key."""
    key, name = override.key_or_group, str(override.value())
    if key.startswith("hydra/"):
        there = GlobalHydra.instance().config_loader().get_group_options(key)
        extras = EXTRAS.get(key, ())
        if name not in there and name in extras:
            raise ConfigError(f'{key}={name} is not installed: pip install -e ".[sweep]"')
        if there and name not in there:
            names = sorted({*there, *extras})
            raise ConfigError(f"{key}={name} is no option of {key}{nearest(name, names)}; allowed: {', '.join(names)}")
        if key in EXTRAS and not sweep:
            raise ConfigError(f"{key}={name} is of sweeps: add -m")
    elif key.endswith("._target_") and not name.startswith(BUILT):
        raise ConfigError(f"{override.input_line} is refused: Hydra builds classes of {', '.join(BUILT)} only")
    elif (override.is_add() or override.is_force_add()) and key.count(".") == 1:
        raise ConfigError(f"{key} is read by nobody: leave it out")
