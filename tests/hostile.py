"""A pickle that makes a directory when it is read, as one that does harm would do that."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class Hostile:
    """Calls a function with these arguments when it is unpickled; makes a directory if only its path is given."""

    def __init__(self, *arguments: Any, call: Callable[..., Any] = os.mkdir) -> None:
        self.call, self.arguments = call, tuple(str(a) if isinstance(a, os.PathLike) else a for a in arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments
