"""Seconds of each part of an evaluation, and of work on a device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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

    def move(self, seconds: float, part: str, to: str) -> None:
        """Count some seconds of one part as those of another."""
        self[part] -= seconds
        self[to] += seconds


class DeviceClock:
    """Context whose `seconds()` are those that a device needs for the work queued in it.

    On a CUDA device they lie between two events: work that was queued earlier does not count, and only `seconds` waits.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device, self._marks = torch.device(device), []

    def _mark(self) -> None:
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
            return
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self._marks.append(time.perf_counter())

    def __enter__(self) -> DeviceClock:
        self._mark()
        return self

    def __exit__(self, *error: object) -> None:
        self._mark()

    def seconds(self) -> float:
        """Wait for the work; return its seconds."""
        start, end = self._marks
        if self._device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000
