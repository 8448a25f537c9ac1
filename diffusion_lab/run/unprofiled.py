"""The profiler of a run that is not profiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pytorch_lightning.profilers import PassThroughProfiler


class Unprofiled(PassThroughProfiler):
    """Times nothing, without the context that Lightning's own makes anew for each hook of each callback.

    A step has some seventy of them, 1.3 us each.
    """

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        return self.nothing
