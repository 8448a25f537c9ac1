"""One process at a time in a directory that is written to."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.lock import lock

_held: set[TextIO] = set()


def _let_go() -> None:
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # workers of a data loader may outlive the process that holds it


def free(file: TextIO) -> bool:
    """Lock a file; whether no other process holds it.  Nodes that resume a run together try it for a moment, too."""
    with suppress(OSError):  # a file system without locks
        for _ in range(3):
            if lock(file):
                return True
            time.sleep(0.1)
        return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory, made if need be; the system lets go of it however the process ends.

    Raises:
        ConfigError: if another process holds it, with that one's number, or where there can be no directory.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made a directory ({error.strerror}): choose another") from error
    with (folder / ".lock").open("a+") as file:
        if not free(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConfigError(f"{folder} is in use by process {holder}: wait for it, stop it, or choose another")
        _held.add(file)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            _held.discard(file)
