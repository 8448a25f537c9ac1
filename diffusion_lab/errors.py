"""Errors that are shown to the user as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the user, `status` the exit status."""

    status, then = 2, ""


class BadItem(ValueError):
    """An item of a user's data set that cannot be used: which one, and what is wrong, in one line."""


def in_one_line(error: Exception) -> str:
    """The message of an error in one line of at most 500 characters; the name of its class if it has none."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the error that caused it or during whose handling it was raised, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def as_config_error(*classes: type[Exception], message: str = "{}") -> Iterator[None]:
    """Turn errors of these classes into a ConfigError whose one line is `message` with the error's own text.

    Raises:
        ConfigError: also one that is raised within the context, unchanged.
    """
    try:
        yield
    except ConfigError:
        raise
    except classes as error:
        raise ConfigError(message.format(str(error).replace("\n", " "))) from error


def refuse(error: Exception) -> None:
    """Print the error in one line and exit with its status: 2, or 1 for a failure during the run.

    HYDRA_FULL_ERROR=1 raises it instead, with a traceback.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    then = getattr(error, "then", "")
    print(f"error: {error}{then and '; '}{then}", file=sys.stderr)
    sys.exit(getattr(error, "status", 2))
