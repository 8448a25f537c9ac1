"""What a configuration names: checkpoints, pairs, and `init_from`, on this machine or on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config.class_rules import get, nodes
from diffusion_lab.errors import ConfigError, in_one_line
from diffusion_lab.storage import hub

HUB = "hf://"


def missing_source(config: Mapping[str, Any]) -> str | None:
    """Why a training cannot be initialised from `init_from`, without opening the file; None if it can."""
    source = config.get("init_from")
    if not source or config.get("ckpt_path") or source == "last":
        return None
    if str(source).startswith(hub.HUB):
        try:
            hub.repository(str(source))
        except ConfigError as error:
            return f"init_from={source}: {error}"
        return None
    if str(source).startswith(HUB):
        if str(source).removeprefix(HUB).count("/") < 2:
            return f"init_from={source}: write {HUB}user/repository/file"
        if importlib.util.find_spec("huggingface_hub") is None:
            return f'init_from={source} needs huggingface_hub: pip install -e ".[huggingface]"'
        return None
    if Path(str(source)).expanduser().exists():
        return None
    remote = f"{hub.HUB}user/name, or {HUB}user/repository/file"
    return f"init_from={source} does not exist: give a run, a file of weights, last, {remote}"


def missing_pairs(config: Mapping[str, Any]) -> str | None:
    """Why a training cannot use the pairs of data.pairs, without opening them; None if it can."""
    folder = get(config, "data.pairs")
    if folder is None or not get(config, "model.loss"):
        return None
    if not get(config, "model.loss.PAIRED"):
        return "data.pairs pairs noise with data, which this loss does not: use loss=output, or simple"
    if get(config, "data.augment"):
        return "data.pairs holds the noise of images as they are: set data.augment=0"
    if not (Path(str(folder)).expanduser() / "noise.npy").is_file():
        return (
            f"data.pairs={folder} holds no noise.npy: write it with sample.py ckpt_path=... noise=true out={folder} "
            "and a sampler without noise, such as sampler=ode"
        )
    return None


def missing_checkpoint(config: Mapping[str, Any]) -> str | None:
    """Why the checkpoint of a component, such as a teacher, cannot be loaded, without opening it; None if it can."""
    for path, node in nodes(config):
        source = node.get("ckpt_path") if path and "_target_" in node else None
        if source in (None, "last") or str(source).startswith(hub.HUB):
            continue
        if not Path(str(source)).expanduser().exists():
            name = f"{path.removeprefix('model.')}.ckpt_path"
            return f"{name}={source} does not exist: give a run directory, a .ckpt file or {hub.HUB}user/name"
    return None


def fetched(source: str) -> Path:
    """Download a file of the hub, hf://user/repository/file, and return its path.

    Raises:
        ConfigError: if it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    user, repository, file = source.removeprefix(HUB).split("/", 2)
    try:
        return Path(hf_hub_download(f"{user}/{repository}", file))
    except Exception as error:  # of the network, the hub or the disk
        raise ConfigError(f"init_from={source} cannot be downloaded: {in_one_line(error)}") from error
