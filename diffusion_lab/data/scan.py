"""Decoding every image of a set once, so that a damaged one is found before the first step; remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diffusion_lab.storage.atomic_file import whole_file

CACHE = "DIFFUSION_LAB_CACHE"
"""Environment variable: the folder that remembers which sets were decoded; by default ~/.cache/diffusion_lab."""

Look = Callable[[int], "set[str] | str"]
"""Number of an image -> its traits, or in words why it cannot be decoded."""


@dataclass(frozen=True)
class Survey:
    """What decoding a set has shown: how many images have a trait, and why some (by number) cannot be decoded."""

    traits: Counter[str]
    broken: dict[int, str]

    @classmethod
    def of(cls, found: list[set[str] | str]) -> Survey:
        """From the answers of a `Look`, in order."""
        broken = {number: answer for number, answer in enumerate(found) if isinstance(answer, str)}
        return cls(Counter(trait for answer in found if isinstance(answer, set) for trait in answer), broken)


def remembered(stamp: bytes, take: Callable[[], Survey]) -> Survey:
    """The survey of a set that `stamp` tells from all others: from disk, or taken now by one process of this machine.

    Where nothing can be written it is taken, and forgotten.
    """
    folder = Path(os.environ.get(CACHE) or "~/.cache/diffusion_lab").expanduser() / "decoded"
    path = folder / f"{hashlib.sha256(stamp).hexdigest()[:32]}.json"
    with one_process(path.with_suffix(".lock")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(path.read_text())
            return Survey(Counter(found["traits"]), {int(number): why for number, why in found["broken"].items()})
        survey = take()
        with suppress(OSError), whole_file(path) as file:
            file.write(json.dumps({"traits": survey.traits, "broken": survey.broken}).encode())
    return survey


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Wait until no other process is within the same context; a file system without locks lets all in."""
    file = None
    with suppress(OSError, ImportError):
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def telling(look: Look, count: int, every: float = 30.0) -> Look:
    """The same, with a line on standard error now and then."""
    begun, last, done = time.monotonic(), [time.monotonic()], [0]

    def entry(index: int) -> set[str] | str:
        answer = look(index)
        done[0] += 1  # threads may lose a few
        now = time.monotonic()
        if now - last[0] > every:
            last[0] = now
            left = (now - begun) * (count / done[0] - 1)
            print(f"data     {done[0]:,} of {count:,} images decoded, to find damaged ones; {left:.0f} s to go",
                  file=sys.stderr, flush=True)  # fmt: skip
        return answer

    return entry
