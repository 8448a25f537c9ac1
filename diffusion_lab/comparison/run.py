"""Results files of runs, and the shortest names that tell the runs apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RESULTS = "results.json"
MARKS = ("config.yaml", "job.json", "request.json")
"""Files that a run directory has from its first moment."""
ASIDE = {"paths", "hydra", "logger", "ckpt_path", "data_dir", "device", "batch_size", "evaluate", "num_samples"}
"""Words of a command line that say where a run works and what it writes, or what its protocols say anyway."""
METHOD = ("model", "sde", "conditional")
"""Facts that come first in the name of a run, wherever runs differ in them."""
CLEAR_ALONE = {"model", "data", "sampler", "network", "weights"}
"""Facts that are understood without their key."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one is not built everywhere


@dataclass(frozen=True)
class Run:
    """One results file, and the `key=value` words of the command line that made it."""

    path: Path
    results: Mapping[str, Any]
    overrides: Mapping[str, str]

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        return self.results["metrics"]

    @property
    def place(self) -> Path:
        """The run's directory, or the file if it goes by another name than results.json."""
        return self.path.parent if self.path.name == RESULTS else self.path

    def number(self, key: str) -> float | None:
        """A number of the file's top level; None if it has none."""
        return number(self.results.get(key))


def number(value: Any) -> float | None:
    """The value if it is a number, otherwise None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The results files named, of run directories, or below other directories in natural order; each file once.

    Raises:
        FileNotFoundError: for a path that does not exist, or where there is no results.json in any of them or below.
    """
    found: dict[Path, Path] = {}
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: name run directories or results.json files")
        own = path if path.is_file() else path / RESULTS
        files = [own] if own.is_file() else sorted(path.rglob(RESULTS), key=lambda file: _natural(file.parent))
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise FileNotFoundError(
            f"no {RESULTS} in {', '.join(map(str, paths))} or below: train.py writes it when it evaluates, sample.py "
            "with evaluate=true"
        )
    return list(found.values())


def unfinished(paths: Iterable[str | Path]) -> list[Path]:
    """Directories named, and of runs below them, that hold no results: not finished, or never evaluated."""
    found: dict[Path, None] = {}
    for path in filter(Path.is_dir, map(Path, paths)):
        marks = (mark for name in MARKS for mark in path.rglob(name))
        runs = [mark.parent for mark in marks if not mark.parent.name.startswith(".")]  # .hydra is no run
        if not any(path.rglob(RESULTS)):
            runs.append(path)
        for run in sorted(runs, key=_natural):
            if not any(run.rglob(RESULTS)):
                found.setdefault(run)
    return [run for run in found if not any(other in run.parents for other in found)]


def halfway(run: Run) -> str:
    """Of a training that has results but not all of its steps, those in words; "" for others."""
    config = run.path.with_name("config.yaml")
    try:
        trainer = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("trainer") if config.is_file() else {}
        step, last = run.number("step"), number((trainer or {}).get("max_steps"))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        return ""
    return f"step {step:,.0f} of {last:,.0f}" if step is not None and last is not None and step < last else ""


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", str(path))]


def read(path: Path) -> Run:
    """Read one results file, and the overrides that Hydra left beside it.

    Raises:
        ValueError: if a file is damaged or holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON: {error}") from error
    metrics = results.get("metrics") if isinstance(results, dict) else None
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} is not the results.json of a run: it has no metrics")
    for name, record in metrics.items():
        value = record.get("value", "") if isinstance(record, dict) else ""
        if number(value) is None and value is not None:
            raise ValueError(f"{path} is damaged: its metric {name} has no value")
    # Files of older versions list options that were not set as "all".
    if "sampler" in results:
        results["sampler"] = re.sub(r"\w+=all, |, \w+=all(?=[,)])", "", str(results["sampler"]))
    return Run(path, results, _overrides(path.parent))


def _overrides(run: Path) -> dict[str, str]:
    """The overrides of a run: of its configuration, as a refused command to resume it replaces those in .hydra."""
    config = _yaml(run / "config.yaml")
    words = config.get("overrides") if isinstance(config, dict) else None
    words = _yaml(run / ".hydra" / "overrides.yaml") if words is None else words
    pairs = (str(word).lstrip("+~").partition("=") for word in words or [])
    return {key: value for key, _, value in pairs if key.partition(".")[0] not in ASIDE}


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), _Loader) if path.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: it is not YAML") from error


def facts(run: Run) -> dict[str, str]:
    """What was chosen for a run: model, SDE, labels, data, sampler and its options, the overrides, seed."""
    found = {
        key: str(run.results[key]) for key in ("model", "data", "network", "weights", "seed") if key in run.results
    }
    sampler, _, options = str(run.results.get("sampler", "")).partition(" (")
    first = {key: found[key] for key in ("model",) if key in found}
    if "model" in found:
        first |= {"sde": str(run.results["sde"])} if run.results.get("sde") else {}
        first["conditional"] = "conditional" if "labels" in run.results else "unconditional"
    first |= {key: found[key] for key in ("data",) if key in found} | ({"sampler": sampler} if sampler else {})
    chosen = {f"sampler.{key}": value for key, value in re.findall(r"([\w.]+)=([^,)]*)", options)}
    # The file's words come last: they win over those of the command line, which may since have been replaced.
    return {**first, **{k: v for k, v in run.overrides.items() if k != "seed"}, **chosen, **found, **first}


def distinguishing(found: Sequence[Mapping[str, str]]) -> list[str]:
    """A small set of keys whose values tell the mappings apart as far as all of their keys do, earlier keys first."""
    keys = list(dict.fromkeys(key for one in found for key in one))

    def parts(chosen: Iterable[str]) -> int:
        return len({tuple(one.get(key) for key in chosen) for one in found})

    chosen: list[str] = []
    while parts(chosen) < parts(keys):
        chosen.append(max(keys, key=lambda key: parts([*chosen, key])))
    for key in chosen[::-1]:
        rest = [other for other in chosen if other != key]
        chosen = rest if parts(rest) == parts(keys) else chosen
    return [key for key in keys if key in chosen]


def names(runs: Sequence[Run], leave_out: Sequence[str] = ()) -> list[str]:
    """The shortest names that tell runs apart: what was chosen differently, else step, checkpoint or directory."""
    found = [{k: v for k, v in facts(run).items() if k not in leave_out} for run in runs]
    # An older file may not tell its model: that is no difference.  A word that a command line lacks is one.
    partly = {key for key in (*CLEAR_ALONE, "conditional", "seed") if not all(key in one for one in found)}
    found = [{k: v for k, v in one.items() if not {k, k.partition(".")[0]} & partly} for one in found]
    differing = {key for key in METHOD if len({one.get(key) for one in found}) > 1}
    keys = distinguishing(found)
    keys = [key for key in dict.fromkeys(k for one in found for k in one) if key in {*keys, *differing}]
    keys.sort(key=lambda key: METHOD.index(key) if key in METHOD else len(METHOD))
    if any(key.startswith("sampler.") for key in keys) and len({one["sampler"] for one in found}) > 1:
        keys = [key for key in dict.fromkeys(k for one in found for k in one) if key in {*keys, "sampler"}]
    if keys and any(one.keys().isdisjoint(keys) for one in found):  # nothing can be said of a run but its method
        method = [key for key in METHOD if any(one.get(key, "unconditional") != "unconditional" for one in found)]
        keys = [*dict.fromkeys([*method, *keys])]
    short = [key.rpartition(".")[2] for key in keys]
    label = {key: end if short.count(end) == 1 else key for key, end in zip(keys, short, strict=True)}
    alone = {*CLEAR_ALONE, *METHOD}
    named = [
        " ".join(one[key] if key in alone else f"{label[key]}={one[key]}" for key in keys if key in one)
        or "default" * bool(keys)
        for one in found
    ]
    for name in {name for name in named if named.count(name) > 1 or not name}:
        alike = [index for index, other in enumerate(named) if other == name]
        for index, addition in zip(alike, _last_resort([runs[i] for i in alike]), strict=True):
            named[index] = f"{name} ({addition})" if name else addition
    return named


def _last_resort(runs: Sequence[Run]) -> list[str]:
    """Different names of runs for which the same was chosen."""
    steps = {run.number("step") for run in runs} - {None}
    checkpoints = {run.results.get("checkpoint") for run in runs} - {None}
    if 1 < len(runs) == len(steps):
        return [f"step {run.results['step']}" for run in runs]
    if 1 < len(runs) == len(checkpoints):
        return _apart([Path(str(run.results["checkpoint"])).with_suffix("") for run in runs])
    return _apart([run.place for run in runs])


def _apart(paths: Sequence[Path]) -> list[str]:
    whole = [path.absolute() for path in paths]
    common = os.path.commonpath(whole) if len(whole) > 1 else whole[0].parent
    return [path.relative_to(common).as_posix() for path in whole]
