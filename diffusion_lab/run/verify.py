"""Verify one part: print its checks, and write them and their charts to a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.config.compose import composed, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError, as_config_error, in_one_line
from diffusion_lab.plot.verification import draw
from diffusion_lab.storage.atomic_file import check_writable, write_json
from diffusion_lab.verification import (
    Chart,
    Check,
    check_data,
    check_guidance,
    check_loss,
    check_metric,
    check_network,
    check_process,
    check_sampler,
    check_schedule,
)
from diffusion_lab.verification.check import HEADER, Finding, merged

FILE = "verification.json"
"""The name of the table in the folder."""


def built(settings: Mapping[str, Any], path: str) -> Any:
    """The object that a dotted path of the settings describes.

    Raises:
        ConfigError: if it describes none, as with guidance=none.
    """
    node: Any = settings
    for key in path.split("."):
        node = (node or {}).get(key)
    if not node or "_target_" not in node:
        raise ConfigError(f"{path.partition('.')[0]}: this option names no class, so there is nothing to verify")
    return instantiate(node, path)


def extractor(settings: Mapping[str, Any]) -> Any:
    """The feature extractor of the metric; None for metrics of points."""
    return built(settings, "metric.features") if settings["metric"]["features"] is not None else None


FINDINGS: dict[str, Callable[[Mapping[str, Any]], Iterable[Finding]]] = {
    "sampler": lambda settings: check_sampler(built(settings, "sampler")),
    "schedule": lambda settings: check_schedule(built(settings, "schedule")),
    "guidance": lambda settings: check_guidance(built(settings, "guidance")),
    "loss": lambda settings: check_loss(built(settings, "loss")),
    "network": lambda settings: check_network(
        built(settings, "network"), settings["data"]["shape"], settings["network"].get("classes")
    ),
    "data": lambda settings: check_data(lambda seed: built({"data": {**settings["data"], "seed": seed}}, "data")),
    "metric": lambda settings: check_metric(extractor(settings), settings["data"]["shape"]),
    "sde": lambda settings: check_process(built(settings, "sde.process")),
}
"""Kind of part -> from the settings of a command to what its verification finds."""


def verify(kind: str, name: str, overrides: Sequence[str], out: str) -> bool:
    """Whether the part passes all checks.

    Raises:
        ConfigError: if it cannot be built, suits none of the processes, or `out` cannot be written.
    """
    with as_config_error(OSError, RuntimeError, message="out={}"):
        folder = Path(out).expanduser()
        check_writable(folder)
    settings = plain(composed("train", overrides), overrides)
    # Torch's own, as it differentiates forwards for the first time.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    checks: list[Check] = []
    charts: list[Chart] = []
    for one in with_failures(FINDINGS[kind](settings)):
        if isinstance(one, Chart):
            charts.append(one)
            continue
        print(one if checks else f"{HEADER}\n{one}", flush=True)
        checks.append(one)
    write(folder, f"{kind}={name}", overrides, checks, merged(charts))
    with_tolerance = [one for one in checks if one.tolerance is not None]
    passed = sum(one.passed for one in with_tolerance)
    print(f"{passed} of {len(with_tolerance)} checks passed; written to {folder}")
    return passed == len(with_tolerance)


def with_failures(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; an error of the part itself becomes a check that fails, and ends them.

    Raises:
        ConfigError: for a part that is refused before its first check, such as data without its files.
        Exception: any error, with HYDRA_FULL_ERROR=1.
    """
    begun = False
    try:
        for one in findings:
            begun = True
            yield one
    except Exception as error:  # the user's code may raise anything
        if isinstance(error, ValueError | RuntimeError | OSError) and not begun:
            raise ConfigError(in_one_line(error)) from error
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        yield Check(f"the part raised {type(error).__name__}: {in_one_line(error)}", 1.0)


def write(folder: Path, part: str, overrides: Sequence[str], checks: Sequence[Check], charts: Sequence[Chart]) -> None:
    """Write the table and a picture of each chart."""
    rows = [one.row() for one in checks]
    table = {"part": part, "overrides": list(overrides), "passed": all(one.passed for one in checks), "checks": rows}
    write_json(folder / FILE, table)
    for chart in charts:
        draw(chart, folder / f"{chart.name}.png", part)
