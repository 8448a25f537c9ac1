"""Ranks that only meet, and one that fails, or their agent: rank_job.py FOLDER FAULT RANK (for test_rank_failures.py).

`rank_job.py serve` becomes such an agent for each line FOLDER FAULT RANK that it reads.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diffusion_lab.config.environment import AGENT
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import agent, rank


def serve() -> None:
    """Return in a process of its own for every line, so that all agents import torch but once.

    What each says, and its exit status, come to FOLDER/said and FOLDER/status.
    """
    import torch.distributed.elastic.multiprocessing.errors
    import torch.distributed.launcher.api  # noqa: F401

    for line in sys.stdin:
        if os.fork():
            continue
        folder, pid = Path(line.split()[0]), os.fork()
        if pid == 0:
            os.chdir(folder)
            for number, name in enumerate((os.devnull, "said", "said")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
            sys.argv[1:] = line.split()
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        (folder / "status.part").write_text(str(status))
        (folder / "status.part").rename(folder / "status")
        os._exit(0)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    sys.exit()


if sys.argv[1:] == ["serve"]:
    serve()
FOLDER, FAULT, FAILING = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
WORLD, TIMEOUT = 3 if FAULT == "kill" else 2, 4


def work(number: int) -> None:
    if FAULT == "import" and number == FAILING:
        import no_such_module  # noqa: F401
    meet = meeting() if FAULT in ("kill", "stop", "loop", "none") else lambda: None  # torch takes its time
    for step in range(100):
        meet()
        if step == 3 and number == FAILING:
            (FOLDER / "fault").write_text(str(time.time()))
            fail()
        if step == 20 and FAULT in ("none", "told"):
            if FAULT == "none" and number == 1:
                time.sleep(1)  # the first rank is done, and waits for it
                (FOLDER / "late").touch()
            return None if FAULT == "none" else sys.exit(143)
        time.sleep(0.02 if FAULT in ("kill", "stop", "loop", "none", "told") else 1)


def meeting() -> Callable[[], None]:
    """What all ranks do together."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    return lambda: dist.all_reduce(torch.ones(1))


def fail() -> None:
    if FAULT == "agent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif FAULT in ("kill", "busy"):
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


if AGENT not in os.environ:
    restarts = {"max_restarts": 1} if FAULT in ("refuse", "told") else {}  # which are no reason for one
    sys.exit(agent.run([sys.executable, *sys.argv], restarts, WORLD, FOLDER, "train"))
(FOLDER / f"round_{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
rank.die_with_agent()
with rank.working(FOLDER, "train"):
    work(int(os.environ["RANK"]))
if FAULT == "none" and not sys.modules["torch.distributed"].is_initialized():
    (FOLDER / f"left_{os.environ['RANK']}").touch()
