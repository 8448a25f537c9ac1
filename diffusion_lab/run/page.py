"""The page of a run or a sampling: its settings beside those of its recipe, and the next commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from diffusion_lab.config import directories
from diffusion_lab.config.class_rules import missing
from diffusion_lab.config.compose import composed, parsed, training
from diffusion_lab.config.origin import command, invocation
from diffusion_lab.errors import ConfigError, in_one_line
from diffusion_lab.output import say
from diffusion_lab.page import PAGE, Command, run_page, write
from diffusion_lab.storage.run_directory import CONFIG, REQUEST, RESULTS, newest_step

MOST_OTHERS = 4
"""Other runs that the command for a comparison names."""


class RunPage:
    """The page `<folder>/report.html` of a directory; `write` writes it again, and never raises.

    Args:
        folder: directory of a run of train.py, or of samples of sample.py.

    Raises:
        ConfigError: for a directory of neither, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.trained = (folder / CONFIG).is_file()
            text = (folder / (CONFIG if self.trained else REQUEST)).read_text(encoding="utf-8")
            self.settings = yaml.safe_load(text) if self.trained else json.loads(text)
            if not isinstance(self.settings, Mapping):
                raise ValueError(f"{CONFIG if self.trained else REQUEST} holds no settings")
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} is not the directory of a run or of samples: it holds neither {CONFIG} nor {REQUEST}; "
                "for a sweep, use diffusion-lab compare"
            ) from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{folder} is damaged: {in_one_line(error)}") from error

    @cached_property
    def recipe(self) -> Mapping[str, Any] | None:
        """The configuration of the run's groups without its other overrides; None if it cannot be composed now."""
        started = self.settings.get("started") or {}
        if not self.trained or started.get("config_path") or started.get("config_name", "train") != "train":
            return None
        search = directories.searching(started.get("config_dirs") or ())
        try:
            return recipe_of(search, self.settings.get("overrides") or ())
        except Exception:  # of any class: the page does without, where an option or a class no longer exists
            return None

    def write(self) -> bool:
        """Write the page; a failure is one line, and nothing else.  Return whether it is written."""
        place = self.folder / PAGE
        return attempted(
            lambda: write("run.html", run_page(self.folder, self.settings, self.recipe, self.commands()), place), place
        )

    def commands(self) -> list[Command]:
        """The next commands."""
        here = self.folder.absolute()
        found = of_run(here, self.settings) if self.trained else of_samples(here)
        return [*found, Command("Write this page again", invocation("report", str(here)))]


def attempted(act: Callable[[], None], path: Path) -> bool:
    """Write a page; a failure is one line, and nothing else.  Return whether it is written."""
    try:
        act()
    except Exception as error:  # of any class: the run matters more
        say(f"{path} is not written: {in_one_line(error)}")
        return False
    return True


def recipe_of(search: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of the groups among some overrides, with the values that they require."""
    known, given = directories.groups(directories.directories(search)), parsed(overrides)
    groups = [*search, *(one.input_line for one in given if one.key_or_group in known)]
    try:
        return training(groups)
    except (MissingMandatoryValue, InterpolationToMissingValueError):  # such as the teacher of a student
        raw = OmegaConf.to_container(composed("train", groups), resolve=False)
        return training([*groups, *(one.input_line for one in given if one.key_or_group in missing(raw))])


def of_run(folder: Path, settings: Mapping[str, Any]) -> list[Command]:
    """The commands of a training."""
    found = []
    if newest_step(folder):
        title = "Resume; with trainer.max_steps=... (and decay_steps=...) to train on"
        found.append(Command(title, command("train", folder)))
        samples = (settings.get("metric") or {}).get("samples")
        count = [f"num_samples={samples}"] if isinstance(samples, int) else []
        if "sampler" in settings["model"]:  # a classifier has no samples
            found += [
                Command("Sample from it", command("sample", folder)),
                Command("Sample and evaluate", command("sample", folder, "evaluate=true", *count)),
            ]
    others = [path.parent for path in folder.parent.glob(f"*/{RESULTS}") if path.parent != folder]
    newest = sorted(others, key=lambda path: path.stat().st_mtime)[-MOST_OTHERS:]
    if (folder / RESULTS).is_file():
        purpose = "Compare it with the runs beside it" if newest else "Compare it: add further runs"
        found.append(Command(purpose, invocation("compare", *map(str, (folder, *newest)))))
    return found


def of_samples(folder: Path) -> list[Command]:
    """The commands of a sampling that was evaluated."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        checkpoint, run = Path(results["checkpoint"]), Path(results["run"]).absolute()
    except (OSError, ValueError, KeyError, TypeError):
        return []
    compared = (run, folder) if (run / RESULTS).is_file() else (folder,)
    found = [Command("Compare with the training's own results", invocation("compare", *map(str, compared)))]
    return [Command("Sample from the same checkpoint", command("sample", checkpoint)), *found]
