"""A sweep: its name, the sweeps that are refused, and at its end a table of its jobs and their comparison."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from diffusion_lab import output
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch.job import LOG, metrics
from diffusion_lab.monkeypatches import hydra_config
from diffusion_lab.output import say
from diffusion_lab.storage.run_directory import check_directory, make_new_directory

NAME = "DIFFUSION_LAB_SWEEP"
"""Environment variable that names the sweep for conf/hydra: the same command again resumes the sweep."""

DATE = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
"""Names of sweeps with random jobs."""

_directory: Path | None = None


class Sweep(Callback):
    """Hydra's callback: checks of directories before a run, and of a sweep before its first job."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a directory that is not writable, before Hydra fails on it; no two new runs share a directory."""
        alone = cluster_ranks()[2] == 1 and config.hydra.output_subdir is not None
        try:
            with hydra_config(config), read_write(config), open_dict(config):
                if alone and named_by_time(config.hydra.run):
                    config.hydra.run.dir = str(make_new_directory(Path(config.hydra.run.dir)))
                check_directory(Path(config.hydra.run.dir))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Record the sweep's directory; refuse a sweep that cannot work (Hydra turns an exception into a warning)."""
        global _directory
        try:
            check(config.hydra, config.get("optimized_metric"))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if DATE.fullmatch(os.environ[NAME]) and named_by_time(config.hydra.sweep) and cluster_ranks()[2] == 1:
            os.environ[NAME] = make_new_directory(Path(config.hydra.sweep.dir)).name
        _directory = Path(config.hydra.sweep.dir).resolve()
        if config.hydra.sweeper.get("max_failure_rate") == 0.0:
            with read_write(config), open_dict(config):  # otherwise one failed job ends an Optuna sweep
                config.hydra.sweeper.max_failure_rate = 1.0


def named_by_time(place: DictConfig) -> bool:
    """Whether a directory is named by the time, as by default, and not by the user."""
    return "${now:" in OmegaConf.to_container(place, resolve=False)["dir"]


def check(hydra: Any, metric: str | None) -> None:
    """Refuse a sweep whose jobs would differ between ranks, and an optimiser without a metric.

    Raises:
        ConfigError: in one line, for the user.
    """
    sweeper, launcher = (str(hydra[part]._target_).rpartition(".")[2] for part in ("sweeper", "launcher"))
    starter, _, count = cluster_ranks()
    random = sweeper != "BasicSweeper" or any("shuffle(" in word for word in hydra.overrides.task)
    if count > 1 and (random or launcher != "BasicLauncher"):
        what = "a shuffled sweep" if sweeper == "BasicSweeper" and random else f"{sweeper} with {launcher}"
        raise ConfigError(
            f"-m under {starter}: {what} would start other jobs on each of the {count} ranks; start it without "
            f"{starter}, each job starts its own ranks (trainer.devices=2)"
        )
    if sweeper == "OptunaSweeper" and metric is None:
        raise ConfigError("this sweeper needs a metric to optimise: add optimized_metric=NAME (see results.json)")


def name(arguments: Sequence[str]) -> str:
    """Name a sweep by its swept overrides and a digest of all arguments; by the date if its jobs are random."""
    if any(re.match(r"hydra/sweeper=(?!basic$)", one) for one in arguments):
        return time.strftime("%Y-%m-%d_%H-%M-%S")
    swept = [one for one in arguments if re.search(r"=.*[,(]", one) and not one.startswith("hydra")]
    digest = hashlib.sha256(json.dumps(list(arguments)).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(swept))[:60].strip("-")
    return f"{slug or 'one'}_{digest}"


@contextmanager
def sweeping(arguments: Sequence[str]) -> Iterator[None]:
    """Context of all jobs: name the sweep first; at the end print a table and a comparison, exit 1 on failures."""
    os.environ[NAME] = name(arguments)
    since, finished = time.time(), True
    try:
        yield
    finally:
        if _directory is not None and cluster_ranks()[1] == 0:
            finished = conclude(_directory, since)
    if not finished:
        sys.exit(1)


def conclude(sweep: Path, since: float) -> bool:
    """Print a table of the jobs begun after `since` and compare their results; return whether all are finished."""
    from diffusion_lab.comparison.command import compare  # not for --help, which imports this module
    from diffusion_lab.comparison.page import PAGE, write_page

    lines = (sweep / LOG).read_text(encoding="utf-8").splitlines() if (sweep / LOG).is_file() else []
    jobs = sorted((j for j in map(json.loads, lines) if j["begun"] >= since), key=lambda j: j["number"])
    if jobs:
        table(jobs)
    if results := [job["directory"] for job in jobs if metrics(Path(job["directory"]))]:
        compare(results, None, sweep, jobs=jobs)
    elif jobs:
        write_page(None, sweep, jobs)
        say(f"written to {os.path.relpath(sweep)}: {PAGE}")
    return all("finished" in job["status"] for job in jobs)


def table(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each job (directory, overrides that differ, status, seconds), then notes and failures."""
    from rich.table import Table
    from rich.text import Text

    same = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    grid = Table()
    for column in ("job", "overrides", "status", "seconds"):
        grid.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for job in jobs:
        overrides = " ".join(one for one in job["overrides"] if one not in same)
        shown = [Path(job["directory"]).name, overrides, job["status"], f"{job['seconds']:.0f}"]
        grid.add_row(*(Text(output.shown(text)) for text in shown))
    output.print_table(grid)
    for job in jobs:
        if job["note"]:
            say(f"job {Path(job['directory']).name} {job['status']}: {job['note']}")
