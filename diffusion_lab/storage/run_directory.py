"""A run's directory: its configuration and its checkpoints."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say
from diffusion_lab.storage import hub
from diffusion_lab.storage.atomic_file import NotWritten, check_writable

CONFIG = "config.yaml"
"""File of a run directory: the resolved configuration of its training, and the overrides that it was composed from."""

REQUEST = "request.json"
"""File of a directory of samples: everything that they depend on."""

RESULTS = "results.json"
"""File of the metrics of a run or of samples, with their protocols."""

UNSTARTED = {".hydra", ".lock"}
"""Files that a run directory holds before its run starts."""


class CheckpointError(ConfigError):
    """A checkpoint that cannot be found or read; the message is one line for the user."""


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run directory, newest first."""
    return sorted(run_dir.glob("checkpoints/*.ckpt"), reverse=True)


def newest_step(run_dir: Path) -> Path | None:
    """The checkpoint of a run directory from which a resumed run continues."""
    return max(run_dir.glob("checkpoints/step_*.ckpt"), default=None)


def newest_complete(found: Sequence[Path]) -> Path:
    """Return the first complete file; print each one skipped before it.

    Raises:
        CheckpointError: if none is.
    """
    for path in found:
        if is_complete(path):
            return path
        say(f"{path} is truncated or damaged and skipped")
    raise CheckpointError(f"{found[0].parent} holds no complete checkpoint: {', '.join(path.name for path in found)}")


def is_complete(path: Path, needed: bytes = b"state_dict") -> bool:
    """Whether a file has all parts of a checkpoint, as far as that can be checked without executing it."""
    try:
        # A truncated file lacks its end, where an archive's table of contents is.
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    except (OSError, zipfile.BadZipFile, StopIteration, zlib.error, RuntimeError):
        return False
    return needed in pickled and b"config" in pickled


def newest_run(log_dir: str | Path, needed: bytes = b"state_dict") -> Path:
    """The run directory under `log_dir` that has the newest checkpoint, and a complete one.

    Raises:
        CheckpointError: if there is none.
    """
    runs = sorted(Path(log_dir).glob("**/checkpoints"), key=lambda run: run.stat().st_mtime, reverse=True)
    for run in runs:
        found = checkpoints(run.parent)
        if any(is_complete(path, needed) for path in found):
            return run.parent
        if found:
            say(f"{run.parent} holds no checkpoint to resume from and is skipped")
    raise CheckpointError(f"ckpt_path=last: no run with a checkpoint under {Path(log_dir).resolve()}; train one first")


def named_run(name: str | Path, log_dir: str | Path = "logs") -> Path:
    """The path, or for "last" that of the newest run under `log_dir`; raises CheckpointError as `newest_run`."""
    return newest_run(log_dir) if str(name) == "last" else Path(name)


def find(path: str | Path, log_dir: str | Path = "logs") -> Path:
    """The checkpoint file that `path` means: a file, a run directory (its newest), the folder of an exported model,
    "last" (the newest run under log_dir), or hub:user/name, which is downloaded.  In a directory, a truncated file is
    skipped for the one before it.

    Raises:
        CheckpointError: if there is none.
    """
    if str(path).startswith(hub.HUB):
        return hub.weights(str(path))
    path = named_run(path, log_dir)
    if path.is_dir():
        found = checkpoints(path) or sorted(path.glob("*.ckpt"), reverse=True)
        if not found and (exported := hub.in_folder(path)) is not None:
            return exported
        if not found:
            raise CheckpointError(f"{path} holds no checkpoint: expected {path}/checkpoints/*.ckpt or {hub.EXPORTED}")
        return newest_complete(found)
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("*.ckpt"))) if path.suffix == ".ckpt" else ""
        kept = f"; {path.parent} holds {there}" if there else ""
        raise CheckpointError(
            f"ckpt_path={path} does not exist: give a run directory, a .ckpt or .safetensors file, hub:user/name, "
            f"or last{kept}"
        )
    return path


def make_new_directory(folder: Path) -> Path:
    """Create a new directory: `folder`, or with _2, _3, ... after its name if it exists.

    Raises:
        ConfigError: if none can be made.
    """
    for name in (folder.name, *(f"{folder.name}_{number}" for number in range(2, 1000))):
        try:
            folder.with_name(name).mkdir(parents=True)
            return folder.with_name(name)
        except FileExistsError:
            continue
        except OSError:
            break
    check_directory(folder)
    return folder


def check_directory(folder: Path) -> None:
    """Refuse a directory that cannot be made or written to, before anything else fails on it.

    Raises:
        ConfigError: with the reason.
    """
    try:
        check_writable(folder)
    except NotWritten as error:
        raise ConfigError(f"{error}; put the run elsewhere by hydra.run.dir=DIR or paths.log_dir=DIR") from error


def remove_leftover(run_dir: Path, log_dir: Path) -> None:
    """Remove a refused run's directory unless it holds more, and its parents up to `log_dir` that are empty then."""
    run_dir, log_dir = run_dir.absolute(), log_dir.absolute()
    with suppress(OSError):
        names = {path.name for path in run_dir.iterdir()}
        if names - UNSTARTED or (not names and log_dir not in run_dir.parents):
            return
        shutil.rmtree(run_dir)
        for folder in run_dir.parents:
            if folder != log_dir and log_dir not in folder.parents:
                return
            folder.rmdir()
