"""A sweep around its jobs: its name, what is refused, and at the end a table of them and the comparison of results."""

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
"""Environment variable that names the sweep for conf/hydra: equal commands are one sweep, which goes on."""

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
"""Names of sweeps whose jobs are drawn."""

_directory: Path | None = None


class Sweep(Callback):
    """What Hydra tells about a run, or a sweep before its first job."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a directory that cannot be written to, before Hydra fails on it; two runs never share a new one."""
        alone = cluster_ranks()[2] == 1 and config.hydra.output_subdir is not None
        try:
            with hydra_config(config), read_write(config), open_dict(config):
                if alone and named_by_the_clock(config.hydra.run):
                    config.hydra.run.dir = str(make_new_directory(Path(config.hydra.run.dir)))
                check_directory(Path(config.hydra.run.dir))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember where the sweep is, and refuse one that cannot work (an exception would only become a warning)."""
        global _directory
        try:
            check(config.hydra, config.get("optimized_metric"))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if TIME.fullmatch(os.environ[NAME]) and named_by_the_clock(config.hydra.sweep) and cluster_ranks()[2] == 1:
            os.environ[NAME] = make_new_directory(Path(config.hydra.sweep.dir)).name
        _directory = Path(config.hydra.sweep.dir).resolve()
        if config.hydra.sweeper.get("max_failure_rate") == 0.0:
            with read_write(config), open_dict(config):  # one failure would end an Optuna sweep
                config.hydra.sweeper.max_failure_rate = 1.0


def named_by_the_clock(place: DictConfig) -> bool:
    """Whether the name of a directory is the time, to the second, which nobody has asked for."""
    return "${now:" in OmegaConf.to_container(place, resolve=False)["dir"]


def check(hydra: Any, metric: str | None) -> None:
    """Refuse a sweep whose jobs would differ from rank to rank, and an optimiser with nothing to optimise.

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
        raise ConfigError("this sweeper needs a number to optimise: add optimized_metric=<a name in results.json>")


def name(words: Sequence[str]) -> str:
    """A sweep's name from its command line: what is swept, and a digest of all; the date if its jobs are drawn."""
    if any(re.match(r"hydra/sweeper=(?!basic$)", word) for word in words):
        return time.strftime("%Y-%m-%d_%H-%M-%S")
    swept = [word for word in words if re.search(r"=.*[,(]", word) and not word.startswith("hydra")]
    digest = hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(swept))[:60].strip("-")
    return f"{slug or 'one'}_{digest}"


@contextmanager
def sweeping(words: Sequence[str]) -> Iterator[None]:
    """Around all jobs: the sweep's name before, their table and comparison after, and exit status 1 for failures."""
    os.environ[NAME] = name(words)
    since, whole = time.time(), True
    try:
        yield
    finally:
        if _directory is not None and cluster_ranks()[1] == 0:
            whole = conclude(_directory, since)
    if not whole:
        sys.exit(1)


def conclude(sweep: Path, since: float) -> bool:
    """The table of the jobs that this sweep came to and the comparison of their results; whether all are finished."""
    lines = (sweep / LOG).read_text(encoding="utf-8").splitlines() if (sweep / LOG).is_file() else []
    jobs = sorted((j for j in map(json.loads, lines) if j["begun"] >= since), key=lambda j: j["number"])
    if jobs:
        table(jobs)
    results = [job["directory"] for job in jobs if metrics(Path(job["directory"]))]
    if results:
        from diffusion_lab.comparison.command import main as compare

        compare([*results, f"out={sweep}"])
    return all("finished" in job["status"] for job in jobs)


def table(jobs: Sequence[Mapping[str, Any]]) -> None:
    """The jobs of a sweep, a row each: directory, what was chosen differently, how it ended, time; then the reasons."""
    from rich.table import Table
    from rich.text import Text

    same = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    grid = Table()
    for column in ("job", "overrides", "status", "seconds"):
        grid.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for job in jobs:
        words = " ".join(word for word in job["overrides"] if word not in same)
        shown = [Path(job["directory"]).name, words, job["status"], f"{job['seconds']:.0f}"]
        grid.add_row(*(Text(output.shown(word)) for word in shown))
    output.print_table(grid)
    for job in jobs:
        if job["note"]:
            say(f"job {Path(job['directory']).name} {job['status']}: {job['note']}")
