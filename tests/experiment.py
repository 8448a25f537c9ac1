"""The files of conf/experiment as the tests see them: what their headers say, and what they compose to."""

from __future__ import annotations

import functools
import json
import re
import shlex
from typing import Any

from hydra import compose, initialize_config_dir

from diffusion_lab.config.compose import CONF, options, plain

NAMES = options("experiment")


@functools.cache
def header(name: str) -> dict[str, str]:
    """The entries `# Key: text` above an experiment's settings, each continued by lines that begin with `#   `."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    above = lines[1 : lines.index("defaults:")]
    assert lines[0] == "# @package _global_" and all(line.startswith("# ") for line in above)
    return dict(re.findall(r"^# (\w+): (.*)$", "\n".join(above).replace("\n#   ", " "), re.MULTILINE))


def arguments(command: str, script: str) -> list[str]:
    """What stands after `python <script>`."""
    assert shlex.split(command)[:2] == ["python", script], command
    return shlex.split(command.replace("=RUN", "=."))[2:]  # a path that exists


def composed(*overrides: str, task: str = "train") -> dict[str, Any]:
    """The configuration that the words of a command give, resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(task, list(overrides))
    config.paths.run_dir = "."
    return plain(config)


def settings(name: str) -> dict[str, Any]:
    """What the command of an experiment composes to; everyone gets a copy, as composing is slow."""
    return json.loads(_settings(name))


@functools.cache
def _settings(name: str) -> str:
    return json.dumps(composed(*arguments(header(name)["Command"], "train.py")))
