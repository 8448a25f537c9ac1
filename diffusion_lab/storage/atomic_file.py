"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diffusion_lab.storage.lock import has_locks, lock

PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
"""Names of files that are being written, or were when their process was killed."""

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (*FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
"""What a file system answers where nothing can be written, or not so much."""

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class NotWritten(OSError):
    """A file that could not be written, of which nothing is left; one line: path, why, bytes needed, bytes free."""

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
        partial, file = _begin(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # while the lock is held: nobody takes it for that of a dead process
        _flush_directory(path.parent)
    except Exception as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        refusal = refused(error)
        if refusal is None:
            raise
        raise NotWritten(refusal.errno, describe(path, refusal, size), str(path)) from error
    except BaseException:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked as long as it is open."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = partial.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks
            lock(file)
        if partial.exists():  # not removed by another process before it was locked
            return partial, file
        file.close()


def _flush_directory(folder: Path) -> None:
    """Put a directory's new names on the disk, too, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove from a directory what dead processes have not finished; a living one holds a lock on its own."""
    for path in folder.iterdir() if has_locks() else ():
        if PARTIAL.fullmatch(path.name):
            with contextlib.suppress(OSError), path.open("rb") as file:  # gone meanwhile, or locks do not work here
                lock(file)
                path.unlink()


def refused(error: BaseException | None) -> OSError | None:
    """The refusal of a file system that an error is or comes from: torch.save makes another error of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return error
        error = error.__cause__ or error.__context__
    return None


def describe(path: Path, refusal: OSError, size: int | None = None) -> str:
    """One line on a file that could not be written."""
    words = [f"{path} cannot be written: {os.strerror(refusal.errno)}"]
    words += [] if size is None else [f"it needs {format_bytes(size)}"]
    if refusal.errno == errno.EFBIG:
        import resource  # there is none on Windows

        words.append(f"a file may have {format_bytes(resource.getrlimit(resource.RLIMIT_FSIZE)[0])} here (ulimit -f)")
    elif refusal.errno in FULL and (free := room(path)) is not None:
        words.append(f"{format_bytes(free)} are free")
    return ", ".join(words)


def room(path: Path) -> int | None:
    """Bytes that are free where `path` is or would be; None if that cannot be known."""
    place = next((p for p in (path, *path.parents) if p.exists()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def room_for_a_file(folder: Path) -> None:
    """Make sure that a file can be written in a directory, which is made if need be.

    Raises:
        NotWritten: if it cannot.
    """
    path = folder / ".room"
    try:
        with atomic_write(path) as file:
            file.write(bytes(1 << 16))
    except NotWritten as error:
        raise NotWritten(error.errno, describe(folder, error)) from error
    path.unlink(missing_ok=True)


def format_bytes(size: float) -> str:
    """A number of bytes in the largest unit in which it is at least 1."""
    power = min(int(math.log(max(size, 1), 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"
