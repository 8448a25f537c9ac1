"""Importing torch and Lightning, which takes most of the time before a first step, in three quarters of it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any

ASKED_BY_LIGHTNING = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
"""All that Lightning imports from torchmetrics, and where it is defined."""


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Within, modules are imported without collecting garbage, and torchmetrics only as far as Lightning needs it.

    It is for the programs of this project: a script that imports diffusion_lab gets torchmetrics as it always is.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would look through torch's half million objects again and again, and find none to free
    try:
        if "torchmetrics" not in sys.modules:
            torchmetrics_on_demand()
        yield
    finally:
        if collecting:
            gc.freeze()  # nor later
            atexit.register(gc.unfreeze)  # but at the end, where nanobind reports what was not freed as a leak
            gc.enable()


def torchmetrics_on_demand() -> None:
    """Import what Lightning needs of torchmetrics, and the rest of it as soon as anything else is asked of it.

    torchmetrics' own `__init__` imports all metrics, and for some of them scipy.signal, scipy.stats and torchvision.
    It runs in this very module, once, when a name is missing (PEP 562), so that nobody can tell the difference.
    Where that does not work, with another version of torchmetrics, it is imported as always.
    """
    try:
        spec = importlib.util.find_spec("torchmetrics")
        module = importlib.util.module_from_spec(spec)
        module.__version__ = importlib.metadata.version("torchmetrics")
        module._logger = logging.getLogger("torchmetrics")
        sys.modules["torchmetrics"] = module
        importlib.import_module("torchmetrics.utilities")  # first: it and torchmetrics.metric import one another
        for name, home in ASKED_BY_LIGHTNING.items():
            setattr(module, name, getattr(importlib.import_module(home), name))
    except Exception:  # whatever it is, Lightning's own import will do, or say what is wrong
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
        return

    def complete(name: str) -> Any:
        del module.__getattr__
        spec.loader.exec_module(module)
        return getattr(module, name)

    module.__getattr__ = complete


def complete_torchmetrics() -> None:
    """Import the rest of torchmetrics now: before foreign code, which may ask for its submodules only."""
    getattr(sys.modules.get("torchmetrics"), "functional", None)
