"""Build the data module of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.data import DataModule
from diffusion_lab.errors import ConfigError


def data_module(settings: Mapping[str, Any]) -> DataModule:
    """The data module that the settings of group data describe.

    Raises:
        ConfigError: for a class that is not a DataModule, and for settings that it refuses.
    """
    target = settings.get("_target_")
    if target is None or not issubclass(resolve(target, "data"), DataModule):
        raise ConfigError(
            f"data._target_={target} is not a diffusion_lab.data.DataModule: derive a class from it whose load() "
            "returns your torch data set, or two of them (train, held_out)"
        )
    return instantiate(settings, "data")
