"""Locks on files, where the system has them."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: what was made elsewhere is read there, nothing is trained
    fcntl = None


def lock(file: IO[Any], wait: bool = False) -> None:
    """Hold an open file alone until it is closed; nothing happens where there are no locks.

    Raises:
        BlockingIOError: if another process holds it, unless asked to wait.
        OSError: of a file system without locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def has_locks() -> bool:
    """Whether this system has them, as Linux and macOS do."""
    return fcntl is not None
