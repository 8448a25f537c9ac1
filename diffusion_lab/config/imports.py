"""Import torch and Lightning in three quarters of the time, most of the time before the first step."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any

NEEDED_BY_LIGHTNING = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
"""Everything that Lightning imports from torchmetrics, and where it is defined."""


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import modules without garbage collection, and torchmetrics only as far as Lightning needs it.

    Only the commands use it: a script that imports diffusion_lab gets all of torchmetrics.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would scan torch's half million objects again and again and free none
    try:
        if "torchmetrics" not in sys.modules:
            torchmetrics_on_demand()
        yield
    finally:
        if collecting:
            gc.freeze()  # later collections skip them, too
            atexit.register(gc.unfreeze)  # except at exit, where nanobind reports unfreed objects as a leak
            gc.enable()


def torchmetrics_on_demand() -> None:
    """Import what Lightning needs from torchmetrics, and the rest as soon as anything else is accessed.

    torchmetrics' own `__init__` imports all metrics, and for some of them scipy.signal, scipy.stats and torchvision.
    It is executed once in this module when a name is missing (PEP 562), so that the result is the same.
    If that does not work, with another version of torchmetrics, torchmetrics is imported as usual.
    """
    from importlib.metadata import version

    try:
        spec = importlib.util.find_spec("torchmetrics")
        module = importlib.util.module_from_spec(spec)
        module.__version__ = version("torchmetrics")
        module._logger = logging.getLogger("torchmetrics")
        sys.modules["torchmetrics"] = module
        importlib.import_module("torchmetrics.utilities")  # first: it and torchmetrics.metric import one another
        for name, home in NEEDED_BY_LIGHTNING.items():
            setattr(module, name, getattr(importlib.import_module(home), name))
    except Exception:  # Lightning's own import then works or reports the error
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
        return

    def complete(name: str) -> Any:
        del module.__getattr__
        spec.loader.exec_module(module)
        return getattr(module, name)

    module.__getattr__ = complete


def complete_torchmetrics() -> None:
    """Import the rest of torchmetrics now: before foreign code, which may access its submodules only."""
    getattr(sys.modules.get("torchmetrics"), "functional", None)
