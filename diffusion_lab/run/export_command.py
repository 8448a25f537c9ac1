"""The command `python -m diffusion_lab.export`: write a model for others, as safetensors or for diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import override, run_and_keys, tidy
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.errors import ConfigError
from diffusion_lab.storage import hub
from diffusion_lab.storage.run_directory import find

HELP = """\
Write a model for others: its weights, its configuration and a model card with its results.

  python -m diffusion_lab.export RUN [format=safetensors|diffusers] [weights=ema|raw] [out=DIRECTORY] [push=user/name]

RUN is a run's directory, a .ckpt file, or last.
  format=safetensors     model.safetensors, with the configuration in its header: for diffusion_lab.load, sample.py
                         ckpt_path=... and train.py init_from=...; every model, the default
  format=diffusers       a folder for diffusers' DiffusionPipeline.from_pretrained, which makes the images of the run's
                         sampler from the same noise; sampler=ddim sampler.steps=50 chooses another sampler
  weights=ema            or raw
  out=DIRECTORY          an empty directory; default RUN/export/FORMAT
  push=user/name         uploads it to this repository of the Hugging Face Hub, after hf auth login; then
                         diffusion-lab sample ckpt_path=hub:user/name
"""
ALLOWED = {"format": ("safetensors", "diffusers"), "weights": ("ema", "raw"), "out": (), "push": ()}
"""Keys, and their values where only some are possible; the first is the default."""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Export as the arguments say."""
    run, given, rest = run_and_keys(arguments, *ALLOWED)
    given, sampler = read(given, rest)
    if sampler and given["format"] != "diffusers":
        raise ConfigError(f"{sampler[0]} chooses the scheduler of format=diffusers: add it, or leave the sampler out")
    path = find(run)
    if sampler:
        from diffusion_lab.config.compose import check

        check("sample", tidy([*sampler, override("ckpt_path", str(path))]))
    if push := given.get("push"):
        hub.check_login(push)
    out = folder(path, given)
    # Imported here: torch takes seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.run.export import export

    export(path, given["format"], out, given["weights"], sampler, push)


def read(given: dict[str, str], rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(the values of the keys, overrides of the sampler) of a command line.

    Raises:
        ConfigError: for anything else.
    """
    sampler = [word for word in rest if word.startswith(("sampler=", "sampler."))]
    unknown = [*(word for word in rest if word not in sampler), *(f"{key}=" for key in given if not given[key])]
    if unknown:
        raise ConfigError(f"{unknown[0]} is not an argument: use {', '.join(f'{key}=...' for key in ALLOWED)}")
    for key, value in given.items():
        if ALLOWED[key] and value not in ALLOWED[key]:
            raise ConfigError(f"{key}={value} must be one of {', '.join(ALLOWED[key])}")
    if sampler and not any(word.startswith("sampler=") for word in sampler):
        raise ConfigError(f"{sampler[0]} changes a sampler: name it by sampler=...")
    return {key: values[0] for key, values in ALLOWED.items() if values} | given, sampler


def folder(path: Path, given: dict[str, str]) -> Path:
    """The directory to write to.

    Raises:
        ConfigError: if it is not empty.
    """
    run = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    if "out" not in given:
        places = (run / "export" / f"{given['format']}{number}" for number in ("", *(f"_{i}" for i in range(2, 1000))))
        return next(place for place in places if not place.exists())
    out = Path(given["out"]).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"out={out} exists already: choose another out=..., or remove it first")
    return out
