"""Failures that a user can mend, each in one line: non-finite numbers, a full disk, lack of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from diffusion_lab.config.environment import cluster_ranks, local_ranks
from diffusion_lab.config.origin import advice
from diffusion_lab.errors import BadItem, ConfigError
from diffusion_lab.finite import NonFinite
from diffusion_lab.storage.atomic_file import NotWritten, describe_write_error, file_system_error

NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "Unable to allocate", "bad_alloc")
"""Messages of libraries that raise no specific error when memory runs out."""


class Failure(ConfigError):
    """A failure that ended a run, in one line; `then` says how to resume.  The exit status is 1."""

    status = 1

    def __init__(self, message: str, then: str) -> None:
        self.then = then
        super().__init__(message)


class Interrupted(Failure):
    """Ctrl-C while sampling.  The exit status is that of a shell, 128 + SIGINT."""

    status = 130


@contextmanager
def explained(run_dir: Path, settings: Mapping[str, Any], task: Literal["train", "sample"]) -> Iterator[None]:
    """Turn failures that `explain` knows into a `Failure` that says how to resume; other errors pass through."""
    try:
        yield
    except KeyboardInterrupt:
        if task == "train" or cluster_ranks()[2] > 1:  # stopped by `callback.Interrupt`, or by the agent
            raise
        raise Interrupted("interrupted", advice(run_dir, task)) from None
    except Exception as error:
        found = explain(error, run_dir, settings)
        if found is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise Failure(" ".join(found.split()), advice(run_dir, task)) from error


def explain(error: BaseException, run_dir: Path, settings: Mapping[str, Any]) -> str | None:
    """Return in one line what failed and what to do; None if unknown, so that a traceback is shown.

    Args:
        settings: of the training or the sampling, as plain containers.
    """
    cause: BaseException | None = error
    while cause is not None:
        found = own_message(cause) or disk(cause, run_dir) or memory(cause, settings)
        if found:
            return found
        cause = cause.__cause__  # only explicit causes: an error during handling is a failure of its own
    return None


def own_message(error: BaseException) -> str | None:
    """The error's own message, for non-finite numbers and unusable items of the data."""
    return str(error).strip().splitlines()[-1] if isinstance(error, NonFinite | BadItem) else None


def disk(error: BaseException, run_dir: Path) -> str | None:
    """Describe a file that cannot be written."""
    if isinstance(error, NotWritten):
        return str(error)
    if not isinstance(error, OSError) or file_system_error(error) is not error:
        return None
    return describe_write_error(Path(os.fsdecode(error.filename or run_dir)), error)


def memory(error: BaseException, settings: Mapping[str, Any]) -> str | None:
    """Describe a lack of memory, with settings that need less and compute the same."""
    device = type(error).__name__ == "OutOfMemoryError"
    if not (device or isinstance(error, MemoryError | RuntimeError)):
        return None
    text = str(error)
    if not (device or isinstance(error, MemoryError) or any(word in text for word in NO_MEMORY)):
        return None
    where = "the device" if device or "CUDA" in text or "MPS" in text else "this machine"
    lighter = lighter_sampling(settings) if "num_samples" in settings else lighter_training(settings)
    return f"{where} is out of memory ({text.splitlines()[0][:160] if text else 'MemoryError'}); try {lighter}"


def lighter_sampling(settings: Mapping[str, Any]) -> str:
    """Settings with which sampling needs less memory."""
    options = [f"batch_size={max(1, settings['batch_size'] // 2)}"] if settings["batch_size"] > 1 else []
    options += ["trainer.precision=bf16-mixed"] * (settings["trainer"]["precision"] == "32-true")
    return " or ".join(options) or "a larger device"


def lighter_training(settings: Mapping[str, Any]) -> str:
    """Settings that train on the same batches with less memory: accumulation, lower precision, recomputation."""
    trainer, network = settings["trainer"], settings["model"]["network"]
    batch, parts = settings["data"]["batch_size"], trainer["accumulate_grad_batches"]
    world = (local_ranks(trainer) or 1) * trainer["num_nodes"]
    divisor = next((d for d in range(2, batch + 1) if batch % (d * world) == 0), None)
    options = []
    if divisor is not None:
        halved = f"data.batch_size={batch // divisor} trainer.accumulate_grad_batches={parts * divisor}"
        options.append(f"{halved} (still {batch * parts} images a step)")
    options += ["network.checkpoint=true"] * (network.get("checkpoint") is False)
    options += ["trainer.precision=bf16-mixed"] * (trainer["precision"] == "32-true")
    options += ["trainer=fsdp"] * (world > 1 and not isinstance(trainer["strategy"], Mapping))
    return " or ".join(options) or "a smaller network"
