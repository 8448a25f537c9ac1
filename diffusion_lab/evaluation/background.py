"""Writing files in a second thread while an accelerator computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

WAITING = 2
"""Pieces of work that may be unfinished; each holds its rows in memory."""


class Background:
    """Context that does pieces of work in one thread, in order, beside a computation; at its end all are done.

    Beside a computation on the CPU each piece is done at once: a second thread would compete with the network for its
    cores, which gains nothing.

    An error of a piece is raised in the caller's thread, by the next call or at the end, and no later piece is begun.
    If the caller fails, the pieces that it has handed over are completed first.

    Pieces should only write files: torch's precision of products is global, so that features extracted in this thread
    would change the arithmetic of a network that runs meanwhile (`SampleStore.generate` queues them in the caller's).

    Args:
        device: where the computation runs.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._thread = None if torch.device(device).type == "cpu" else ThreadPoolExecutor(1, "background")
        self._pending: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Background:
        return self

    def __call__(self, work: Callable[[], None]) -> None:
        """Hand over a piece of work; wait while more than `WAITING` are unfinished."""
        if self._thread is None:
            work()
            return
        self._pending.append(self._thread.submit(self._do, work))
        if len(self._pending) > WAITING:
            self._pending.popleft().result()
        if self._error is not None:
            raise self._error

    def _do(self, work: Callable[[], None]) -> None:
        try:
            if self._error is None:
                work()
        except BaseException as error:
            self._error = error

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        earlier = self._error is not None and self._error is not error  # than the caller's own error, if it has one
        if earlier and (error is None or isinstance(error, Exception)):
            raise self._error
