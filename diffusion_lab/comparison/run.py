"""Results files of runs, and short names that distinguish the runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffusion_lab.storage.run_directory import CONFIG, REQUEST, RESULTS

RUN_FILES = (CONFIG, "job.json", REQUEST)
"""Files that identify a run directory, written at its start."""
NOT_IN_NAMES = {"paths", "hydra", "logger", "ckpt_path", "data_dir", "device", "batch_size", "evaluate", "num_samples"}
"""Overrides that are not part of names: paths and output, or settings that the protocols contain."""
METHOD = ("model", "sde", "conditional")
"""Facts that come first in the name of a run, if runs differ in them."""
WITHOUT_KEY = {"model", "data", "sampler", "network", "weights"}
"""Facts that are clear without their key."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one is not built everywhere


@dataclass(frozen=True)
class Run:
    """A results file, and the overrides of the command that wrote it."""

    path: Path
    results: Mapping[str, Any]
    overrides: Mapping[str, str]

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        return self.results["metrics"]

    @property
    def place(self) -> Path:
        """The run's directory, or the file if it has another name than results.json."""
        return self.path.parent if self.path.name == RESULTS else self.path

    def number(self, key: str) -> float | None:
        """Return a number at the file's top level; None if it has none."""
        return number(self.results.get(key))


def number(value: Any) -> float | None:
    """Return the value if it is a number, otherwise None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Return the results files: files given, of run directories, or below directories in natural order; without copies.

    Raises:
        FileNotFoundError: for a path that does not exist, or if there is no results.json at all.
    """
    found: dict[Path, Path] = {}
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give run directories or results.json files")
        direct = path if path.is_file() else path / RESULTS
        files = [direct] if direct.is_file() else sorted(path.rglob(RESULTS), key=lambda file: _natural(file.parent))
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise FileNotFoundError(
            f"no {RESULTS} in {', '.join(map(str, paths))} or below: train.py writes it when it evaluates, sample.py "
            "with evaluate=true"
        )
    return list(found.values())


def unfinished(paths: Iterable[str | Path]) -> list[Path]:
    """Return the given directories, and run directories below them, without results: not finished or not evaluated."""
    found: dict[Path, None] = {}
    for path in filter(Path.is_dir, map(Path, paths)):
        files = (file for name in RUN_FILES for file in path.rglob(name))
        runs = [file.parent for file in files if not file.parent.name.startswith(".")]  # not .hydra
        if not any(path.rglob(RESULTS)):
            runs.append(path)
        for run in sorted(runs, key=_natural):
            if not any(run.rglob(RESULTS)):
                found.setdefault(run)
    return [run for run in found if not any(other in run.parents for other in found)]


def missing_steps(run: Run) -> str:
    """Return "step 500 of 1,000" for a training with results that has not finished, "" otherwise."""
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
    """Read a results file, and the overrides of its run.

    Raises:
        ValueError: if a file is damaged or has other contents.
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
    """Return the overrides of a run: of its config.yaml, as a refused command to resume it replaces those in .hydra."""
    config = _yaml(run / "config.yaml")
    overrides = config.get("overrides") if isinstance(config, dict) else None
    overrides = _yaml(run / ".hydra" / "overrides.yaml") if overrides is None else overrides
    pairs = (str(override).lstrip("+~").partition("=") for override in overrides or [])
    return {key: value for key, _, value in pairs if key.partition(".")[0] not in NOT_IN_NAMES}


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), _Loader) if path.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: it is not YAML") from error


def facts(run: Run) -> dict[str, str]:
    """Return the settings of a run: model, SDE, labels, data, sampler and its options, overrides, seed."""
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
    # Values of the results file take precedence over overrides, which may have been replaced since.
    return {**first, **{k: v for k, v in run.overrides.items() if k != "seed"}, **chosen, **found, **first}


def distinguishing(found: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a small set of keys that distinguishes the mappings as far as all keys do, earlier keys first."""
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
    """Return short distinct names: the settings in which runs differ, or else step, checkpoint or directory."""
    found = [{k: v for k, v in facts(run).items() if k not in leave_out} for run in runs]
    # A missing override is a difference, but not a missing model, which older files did not record.
    partly = {key for key in (*WITHOUT_KEY, "conditional", "seed") if not all(key in one for one in found)}
    found = [{k: v for k, v in one.items() if not {k, k.partition(".")[0]} & partly} for one in found]
    differing = {key for key in METHOD if len({one.get(key) for one in found}) > 1}
    keys = distinguishing(found)
    keys = [key for key in dict.fromkeys(k for one in found for k in one) if key in {*keys, *differing}]
    keys.sort(key=lambda key: METHOD.index(key) if key in METHOD else len(METHOD))
    if any(key.startswith("sampler.") for key in keys) and len({one["sampler"] for one in found}) > 1:
        keys = [key for key in dict.fromkeys(k for one in found for k in one) if key in {*keys, "sampler"}]
    if keys and any(one.keys().isdisjoint(keys) for one in found):  # a run has none of the keys: add its method
        method = [key for key in METHOD if any(one.get(key, "unconditional") != "unconditional" for one in found)]
        keys = [*dict.fromkeys([*method, *keys])]
    short = [key.rpartition(".")[2] for key in keys]
    label = {key: end if short.count(end) == 1 else key for key, end in zip(keys, short, strict=True)}
    without_key = {*WITHOUT_KEY, *METHOD}
    named = [
        " ".join(one[key] if key in without_key else f"{label[key]}={one[key]}" for key in keys if key in one)
        or "default" * bool(keys)
        for one in found
    ]
    for name in {name for name in named if named.count(name) > 1 or not name}:
        equal = [index for index, other in enumerate(named) if other == name]
        for index, addition in zip(equal, _additions([runs[i] for i in equal]), strict=True):
            named[index] = f"{name} ({addition})" if name else addition
    return named


def _additions(runs: Sequence[Run]) -> list[str]:
    """Return distinct names of runs with equal settings: by step, checkpoint or directory."""
    steps = {run.number("step") for run in runs} - {None}
    checkpoints = {run.results.get("checkpoint") for run in runs} - {None}
    if 1 < len(runs) == len(steps):
        return [f"step {run.results['step']}" for run in runs]
    if 1 < len(runs) == len(checkpoints):
        return _relative([Path(str(run.results["checkpoint"])).with_suffix("") for run in runs])
    return _relative([run.place for run in runs])


def _relative(paths: Sequence[Path]) -> list[str]:
    """Return paths relative to their common directory."""
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath(absolute) if len(absolute) > 1 else absolute[0].parent
    return [path.relative_to(common).as_posix() for path in absolute]
