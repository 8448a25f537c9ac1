"""The user's packages whose classes a run may build: those of runs that this user started."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config.instantiate import FURTHER, PATH, named_in

RECORD = "started"
"""Key of a run's configuration that records how it was started."""


def admit(started: Mapping[str, Any] | None) -> None:
    """Allow the packages that a run was started with, in this process and its children.

    Only if this user started it: a configuration from elsewhere must not extend what it may build.
    """
    record = {key: value for key, value in (started or {}).items() if key != "seal"}
    if not (record.get("packages") and hmac.compare_digest(str(started.get("seal")), seal(record) or "unsealed")):
        return
    for variable, key, separator in ((FURTHER, "packages", ","), (PATH, "path", os.pathsep)):
        os.environ[variable] = separator.join(dict.fromkeys([*named_in(variable), *record[key]]))


def lacking(started: Mapping[str, Any] | None) -> str:
    """What to set in the environment for a run whose packages are not allowed; empty if nothing is missing."""
    missing = [name for name in (started or {}).get("packages") or () if name not in named_in(FURTHER)]
    if not missing:
        return ""
    return f"; its run was started with {FURTHER}={','.join(missing)} in {started['directory']}: set it if you trust it"


def seal(record: Mapping[str, Any]) -> str | None:
    """A signature (HMAC) of a record with this user's key; None if no key can be stored."""
    file = key_file()
    message = json.dumps(record, sort_keys=True).encode()
    return None if file is None else hmac.new(file.read_bytes(), message, hashlib.sha256).hexdigest()


def key_file() -> Path | None:
    """The file of this user's key, created if needed; None if that is impossible."""
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = home / "diffusion_lab" / "seal"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            try:
                os.link(fresh, path)  # the first process wins
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path if len(path.read_bytes()) == 32 else None
    except (OSError, RuntimeError):  # no home directory
        return None
