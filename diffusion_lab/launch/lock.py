"""One process at a time in a directory that is written to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_lab.launch.instantiate import ConfigError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory, made if need be; the system lets go of it however the process ends.

    Raises:
        ConfigError: if another process holds it, with that one's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"{folder} is in use by process {holder}: wait for it, stop it, or choose another"
            ) from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
