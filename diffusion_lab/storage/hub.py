"""Repositories of the Hugging Face Hub, as hub:user/name: weights from them, and folders to them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from diffusion_lab.errors import ConfigError, in_one_line

HUB = "hub:"
"""Prefix of a repository."""

EXPORTED = "model.safetensors"
"""File of an exported model in its folder."""

WEIGHTS = (
    EXPORTED,
    *(f"{folder}diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin") for folder in ("unet/", "")),
)
"""Files of weights that a repository or a folder may hold, in order of preference: our export, and diffusers' U-Net."""

BESIDE = ("unet/config.json", "config.json")
"""Files that describe them."""


def repository(source: str) -> str:
    """The user/name of hub:user/name.

    Raises:
        ConfigError: for another text, or if the Hub's client is not installed.
    """
    return _checked(source, HUB)


def _checked(source: str, before: str) -> str:
    """The user/name of a text that starts with `before`."""
    name = source.removeprefix(before)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ConfigError(f"{source} is not a repository of the Hugging Face Hub: write {before}user/name")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError(f'{source} needs huggingface_hub: pip install "diffusion_lab[huggingface]"')
    return name


def weights(source: str) -> Path:
    """The file of weights in the repository hub:user/name, downloaded unless it is in the Hub's cache.

    Raises:
        ConfigError: if it cannot be downloaded, or holds no weights that we know.
    """
    name = repository(source)
    from huggingface_hub import snapshot_download

    for kind in (".safetensors", ".bin"):
        wanted = [file for file in WEIGHTS if file.endswith(kind)]
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, *BESIDE]))
        except Exception as error:  # of the network, the Hub or the disk
            raise ConfigError(f"{source} cannot be downloaded: {in_one_line(error)}") from error
        if (file := in_folder(folder)) is not None:
            return file
    raise ConfigError(f"{source} holds none of the files {', '.join(WEIGHTS)}")


def in_folder(folder: Path) -> Path | None:
    """The file of weights in a folder; None if there is none."""
    return next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)


def check_login(name: str) -> None:
    """Refuse to upload to the repository user/name without a valid login.

    Raises:
        ConfigError: with the remedy.
    """
    _checked(f"push={name}", "push=")
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(f"push={name}: not logged in to the Hugging Face Hub; run hf auth login, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:  # of the network or the Hub
        raise ConfigError(f"push={name}: the login to the Hugging Face Hub fails: {in_one_line(error)}") from error


def upload(folder: Path, name: str, message: str) -> str:
    """Upload a folder to the repository user/name, which is created if needed; return its address.

    Raises:
        ConfigError: if that fails.
    """
    from huggingface_hub import HfApi

    try:
        address: Any = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # of the network or the Hub
        raise ConfigError(f"{folder} is written, but cannot be uploaded to {name}: {in_one_line(error)}") from error
    return str(address)
