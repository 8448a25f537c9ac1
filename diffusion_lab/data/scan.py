"""Decode every image of a data set once before training to find damaged ones; the result is cached on disk."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from diffusion_lab.storage.atomic_file import atomic_write
from diffusion_lab.storage.lock import exclusive
from diffusion_lab.storage.machine_cache import machine_cache

TryDecode = Callable[[int], "set[str] | str"]
"""Index of an image -> its traits, or the reason why it cannot be decoded."""


@dataclass(frozen=True)
class Scan:
    """Result of decoding a data set: number of images with each trait, and the reason of failure by index."""

    traits: Counter[str]
    broken: dict[int, str]

    @classmethod
    def of(cls, results: list[set[str] | str]) -> Scan:
        """Summarise the results of a `TryDecode`, in order."""
        broken = {index: result for index, result in enumerate(results) if isinstance(result, str)}
        return cls(Counter(trait for result in results if isinstance(result, set) for trait in result), broken)


def cached_scan(stamp: bytes, scan: Callable[[], Scan]) -> Scan:
    """Return the scan of the data set identified by `stamp`: from disk, or run now by one process of this machine.

    It is not cached if the folder cannot be written to.
    """
    path = machine_cache("decoded") / f"{hashlib.sha256(stamp).hexdigest()[:32]}.json"
    with exclusive(path.with_suffix(".lock")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(path.read_text())
            return Scan(Counter(found["traits"]), {int(index): why for index, why in found["broken"].items()})
        result = scan()
        with suppress(OSError), atomic_write(path) as file:
            file.write(json.dumps({"traits": result.traits, "broken": result.broken}).encode())
    return result


def with_progress(decode: TryDecode, count: int, every: float = 30.0) -> TryDecode:
    """Return `decode` with a line of progress on standard error at most every `every` seconds."""
    start, last, done = time.monotonic(), [time.monotonic()], [0]

    def decode_and_report(index: int) -> set[str] | str:
        result = decode(index)
        done[0] += 1  # not exact: threads may overwrite each other's count
        now = time.monotonic()
        if now - last[0] > every:
            last[0] = now
            left = (now - start) * (count / done[0] - 1)
            print(f"data     {done[0]:,} of {count:,} images decoded to find damaged ones; {left:.0f} s left",
                  file=sys.stderr, flush=True)  # fmt: skip
        return result

    return decode_and_report
