"""All places where attributes of Hydra or Lightning are replaced that they do not offer for this, and why.

Each function first checks that the library still has the attribute, and otherwise raises one clear error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from diffusion_lab.errors import ConfigError

PACKAGES = {"hydra": "hydra-core", "pytorch_lightning": "pytorch-lightning", "lightning_fabric": "lightning-fabric"}
"""The packages that are changed here, by their modules."""


def version(package: str) -> str:
    """The installed version of a package."""
    from importlib import metadata  # only for an error: every command imports this module

    return metadata.version(package)


def check(owner: Any, name: str) -> None:
    """Check that an object of a library has the attribute that is about to be replaced.

    Raises:
        ConfigError: with the library's version, if it does not.
    """
    if hasattr(owner, name):
        return
    where = owner if inspect.ismodule(owner) else type(owner)
    module = where.__name__ if inspect.ismodule(owner) else where.__module__
    package = PACKAGES.get(module.partition(".")[0], module)
    installed = version(package) if package != module else "unknown"
    raise ConfigError(
        f"{package} {installed} has no {where.__name__}.{name}, which diffusion_lab replaces: "
        f"install a version of {package} that the pyproject.toml of diffusion_lab allows"
    )


@contextmanager
def failures_of_hydra(handle: Callable[[Exception], None]) -> Iterator[list[str]]:
    """Call `handle` with what Hydra raises outside a job, for example while it sets up logging.

    Hydra has no hook for its own failures: `run_and_report`, which calls every step of Hydra and prints the traceback
    of what it raises, is replaced within the context.

    Yields:
        A list that is not empty while a job runs; the job's failures are left to Hydra.
    """
    from hydra._internal import utils

    check(utils, "run_and_report")
    report, at_work, called = utils.run_and_report, list[str](), list[Any]()

    def run(function: Callable[[], Any]) -> Any:
        called.append(function)

        def handled() -> Any:
            try:
                return function()
            except Exception as error:
                if at_work:
                    raise
                handle(error)

        return report(handled)

    utils.run_and_report = run
    try:
        yield at_work
    finally:
        utils.run_and_report = report
    if not called:
        raise ConfigError(
            f"hydra-core {version('hydra-core')} does not call run_and_report, which diffusion_lab replaces: "
            "install a version of hydra-core that the pyproject.toml of diffusion_lab allows"
        )


@contextmanager
def hydra_config(config: Any) -> Iterator[None]:
    """Let ${hydra:...} refer to `config` within the context, before Hydra itself starts a job with it.

    Hydra's own `set_config` makes the configuration read-only, and cannot be undone.
    """
    from hydra.core.hydra_config import HydraConfig

    holder = HydraConfig.instance()
    check(holder, "cfg")
    before, holder.cfg = holder.cfg, config
    try:
        yield
    finally:
        holder.cfg = before


def set_timeout(strategy: Any, seconds: float) -> None:
    """Set the timeout of collectives of a Lightning strategy.

    A Trainer and a Fabric choose the strategy themselves, and pass no timeout to it.

    Raises:
        ConfigError: for a strategy of several ranks without a timeout.
    """
    if hasattr(strategy, "_timeout") or "timeout" in inspect.signature(type(strategy)).parameters:
        check(strategy, "_timeout")
        strategy._timeout = timedelta(seconds=seconds)
    elif getattr(strategy, "num_processes", 1) > 1:
        raise ConfigError(f"trainer.strategy: {type(strategy).__name__} takes no trainer.timeout; use ddp")


def set_last_step(trainer: Any, step: int) -> None:
    """Set the step after which Lightning's training loop ends; -1: never.

    The loop does not even start, and calls no callback, if a run is resumed at its last step.
    """
    loop = trainer.fit_loop.epoch_loop
    check(loop, "max_steps")
    loop.max_steps = step
