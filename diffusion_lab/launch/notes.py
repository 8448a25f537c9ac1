"""What ranks tell one another when they fail, in files, and the user, in words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lab.config.origin import advice
from diffusion_lab.output import tolerant

LOST = ("timed out", "timeout", "closed by peer", "connection reset", "broken pipe", "connection refused", "aborted")
"""What torch.distributed's errors say where the fault is another rank's."""


class Notes:
    """Files by which the ranks of one machine tell each other how they are, in a folder of their job's own.

    rank_1   that it works, as which process; done_1 once it has left as it should, lost_1 if it waited in vain
    cause    the first failure: which rank, which process, what happened, exit status
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, facts: dict[str, Any]) -> bool:
        """Leave a whole file; whether nobody had left one of this name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".") as file:
            json.dump(facts, file)
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, self.folder / name)
                return True
        return False

    def read(self, name: str) -> dict[str, Any] | None:
        """What somebody has left."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / name).read_text())
        return None

    def of(self, *kinds: str) -> dict[int, int]:
        """{rank: process} of those who left a file of these kinds: rank, done or lost."""
        found = [self.read(path.name) for kind in kinds for path in self.folder.glob(f"{kind}_*")]
        return {facts["rank"]: facts["pid"] for facts in found if facts}

    def become(self, rank: int, kind: str) -> None:
        """A rank no longer works: it is done, or lost."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / f"rank_{rank}").replace(self.folder / f"{kind}_{rank}")


def first_of(folder: Path) -> int:
    """The process that the ranks of a folder have in common: the first rank, or what has started all of them."""
    return int(folder.name.rpartition("_")[2].partition("-")[0])


def name(cause: dict[str, Any]) -> str:
    """Which rank it was."""
    node = os.environ.get("NODE_RANK", "0")
    return f"rank {cause['rank']}{f' of node {node}' if node != '0' else ''} (process {cause['pid']})"


def ended(code: int) -> tuple[str, int]:
    """(what happened, exit status as in a shell) of a process that ended without a word."""
    if code >= 0:
        return f"ended with exit status {code}; its own message is above", code
    number = signal.Signals(-code)
    why = {
        signal.SIGKILL: " (out of memory?)",
        signal.SIGABRT: " (by NCCL, if another rank did not answer within trainer.timeout; its own message is above)",
    }
    return f"was killed by {number.name}{why.get(number, '')}", 128 + number


def sentence(cause: dict[str, Any], directory: Path, task: str) -> str:
    """The one line for the user."""
    return f"{name(cause)} {cause['told']}; all ranks are stopped; {advice(directory, task)}"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_lost(error: BaseException) -> bool:
    """Whether an error comes from what another rank did, or did not do."""
    dist, ranks = (sys.modules.get(module) for module in ("torch.distributed", "diffusion_lab.ranks"))
    for found in chain(error):
        text = str(found).lower()
        if ranks is not None and isinstance(found, ranks.RankFailed):
            return True
        if (dist is not None and isinstance(found, dist.DistError)) or "gloo" in text or "nccl" in text:
            return any(word in text for word in LOST)
    return False


def last_words(folder: str, directory: str, task: str) -> None:
    """Say for a first rank that was killed that it was; those that it had started have died with it."""
    killed = {"rank": 0, "pid": first_of(Path(folder)), "told": "was killed (out of memory?)"}
    cause = Notes(Path(folder)).read("cause") or killed
    print(f"\n{sentence(cause, Path(directory), task)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    tolerant()
    last_words(*sys.argv[1:])
