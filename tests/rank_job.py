"""Ranks that only meet, and one of them that fails: python rank_job.py FOLDER FAULT RANK (for test_rank_failures.py)."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import watch

FOLDER, FAULT, FAILING = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
WORLD, TIMEOUT = 3 if FAULT == "kill" else 2, 4
watch.PATIENCE, watch.SETTLING = 2.0, 2.0


def work(rank: int) -> None:
    if FAULT == "import" and rank == FAILING:
        import no_such_module  # noqa: F401
    meet = meeting(rank) if FAULT in ("kill", "stop", "loop") else lambda: None  # torch takes its time
    for step in range(100):
        meet()
        if step == 3 and rank == FAILING:
            (FOLDER / "fault").write_text(str(time.time()))
            fail()
        if step == 20 and FAULT in ("none", "told"):
            if FAULT == "none" and rank == 1:
                time.sleep(1)  # the first rank is done, and waits for it
                (FOLDER / "late").touch()
            return None if FAULT == "none" else sys.exit(143)
        time.sleep(0.02 if FAULT in ("kill", "stop", "loop", "none", "told") else 1)


def meeting(rank: int) -> Callable[[], None]:
    """What all ranks do together."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT), rank=rank, world_size=WORLD)
    return lambda: dist.all_reduce(torch.ones(1))


def fail() -> None:
    if FAULT in ("kill", "busy"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif FAULT == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif FAULT == "loop":
        while True:
            time.sleep(0.01)
    elif FAULT == "raise":
        raise ValueError("I give up")
    elif FAULT == "refuse":
        raise ConfigError("there is no such thing: use another")


def start(others: watch.Watch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "LOCAL_RANK": "0"}
    environments = [{**os.environ, "LOCAL_RANK": str(rank)} for rank in range(1, WORLD)]
    others.guard([subprocess.Popen([sys.executable, *sys.argv], env=environment) for environment in environments])


watch.born()
rank = int(os.environ.get("LOCAL_RANK", 0))
try:
    with watch.watched(FOLDER, "train") as others:
        if rank == 0:
            start(others)
        work(rank)
except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
except Exception:
    sys.excepthook(*sys.exc_info())
    sys.exit(1)
finally:
    watch.last_line()
