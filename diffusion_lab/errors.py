"""Errors that are shown to the user as one line."""

from __future__ import annotations

import os
import sys


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the user, `status` the exit status."""

    status, then = 2, ""


class BadItem(ValueError):
    """An item of a user's data set that cannot be used: which one, and what is wrong, in one line."""


def refuse(error: Exception) -> None:
    """Print the error in one line and exit with its status: 2, or 1 for a failure during the run.

    HYDRA_FULL_ERROR=1 raises it instead, with a traceback.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    then = getattr(error, "then", "")
    print(f"error: {error}{then and '; '}{then}", file=sys.stderr)
    sys.exit(getattr(error, "status", 2))
