"""Seconds of each part of an evaluation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Seconds(Counter[str]):
    """Part -> its seconds on this rank, waiting for the others included, added over repeats."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time that the context takes to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[part] += time.perf_counter() - start
