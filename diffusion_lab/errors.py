"""Errors that are shown to the user as one line."""

from __future__ import annotations

import os
import sys


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the user."""

    status, then = 2, ""


class BadItem(ValueError):
    """An item of a user's data set that cannot be used: which one, and what is wrong, in one line."""


def refuse(error: Exception) -> None:
    """Say in one line what is wrong, and exit with status 2, or 1 if it came up while the run was on its way.

    HYDRA_FULL_ERROR=1 shows where it came from.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    then = getattr(error, "then", "")
    print(f"error: {error}{then and '; '}{then}", file=sys.stderr)
    sys.exit(getattr(error, "status", 2))
