"""Atomic writes: a file is complete or does not exist."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_lab.errors import causes
from diffusion_lab.storage.lock import lock

PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
"""Names of files that are being written, or were when their process was killed."""

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (*FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
"""Errors of a file system that cannot write, or not so much."""

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class NotWritten(OSError):
    """A file could not be written and was removed; one line: path, reason, bytes needed, bytes free."""

    def __str__(self) -> str:
        return self.strerror


@contextmanager
def atomic_write(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to that gets the name `path` once it is on the disk, and vanishes if anything is raised.

    What processes that were killed have left of their files in the same directory is removed first.

    Args:
        size: bytes that it will have, if that is known, for the message.

    Raises:
        NotWritten: if the file system refuses it.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path.parent)
        partial, file = _create(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # while it is locked: no process removes it as a leftover
        _flush_directory(path.parent)
    except BaseException as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        refusal = file_system_error(error) if isinstance(error, Exception) else None
        if refusal is None:
            raise
        raise NotWritten(refusal.errno, describe_write_error(path, refusal, size), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain containers as a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The contents of a JSON file; an empty mapping if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _create(path: Path) -> tuple[Path, BinaryIO]:
    """Create a file in the directory of `path`, locked while it is open."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = partial.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks
            lock(file, wait=True)  # another process may have locked it in order to remove it
        if partial.exists():  # not removed by another process before it was locked
            return partial, file
        file.close()


def _flush_directory(folder: Path) -> None:
    """Flush a directory's new names to the disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove unfinished files of processes that have ended; a running process holds a lock on its own."""
    for path in folder.iterdir():
        if PARTIAL.fullmatch(path.name):
            with contextlib.suppress(OSError), path.open("rb") as file:  # removed meanwhile, or no locks here
                if lock(file):
                    path.unlink()


def file_system_error(error: BaseException) -> OSError | None:
    """The error of the file system that an error is or was caused by: torch.save raises another one for it."""
    return next((one for one in causes(error) if isinstance(one, OSError) and one.errno in REFUSALS), None)


def describe_write_error(path: Path, refusal: OSError, size: int | None = None) -> str:
    """Describe in one line why a file cannot be written."""
    parts = [f"{path} cannot be written: {os.strerror(refusal.errno)}"]
    parts += [] if size is None else [f"it needs {format_bytes(size)}"]
    if refusal.errno == errno.EFBIG:
        import resource  # not on Windows

        parts.append(f"a file may have {format_bytes(resource.getrlimit(resource.RLIMIT_FSIZE)[0])} here (ulimit -f)")
    elif refusal.errno in FULL and (free := free_bytes(path)) is not None:
        parts.append(f"{format_bytes(free)} are free")
    return ", ".join(parts)


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of `path`, which need not exist; None if unknown."""
    place = next((p for p in (path, *path.parents) if p.exists()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def check_writable(folder: Path) -> None:
    """Check that a file can be written in a directory, which is created if needed.

    Raises:
        NotWritten: if it cannot.
    """
    path = folder / ".room"
    try:
        with atomic_write(path) as file:
            file.write(bytes(1 << 16))
    except OSError as error:  # also of a folder whose name is that of a file
        raise NotWritten(error.errno, describe_write_error(folder, error)) from error
    path.unlink(missing_ok=True)


def format_bytes(size: float) -> str:
    """A number of bytes in the largest unit in which it is at least 1."""
    power = min(int(math.log(max(size, 1), 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"
