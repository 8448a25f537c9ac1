"""Locks on open files, by filelock: they end with the file or its process, however that ends, and wait for no cleanup.

On the descriptor, not on a path (`filelock.FileLock`): an unfinished file is locked itself, a lock file's content says
who holds it, and forked workers can give up their copy of a lock without unlocking it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def lock(file: IO[Any], wait: bool = False) -> bool:
    """Lock an open file until it is closed; return False if another process holds it and this one does not wait.

    Raises:
        OSError: where there are no locks, such as on some network file systems.
    """
    from filelock import lock_descriptor  # imported late: commands that lock nothing start faster

    return lock_descriptor(file.fileno(), blocking=wait)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context that one process at a time may enter, by a lock file; without effect where there are no locks."""
    file = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked_file(path)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked_file(path: Path) -> IO[Any]:
    """Open and lock the file of this name, not one that its last holder has removed meanwhile."""
    while True:
        file = path.open("a")
        lock(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
