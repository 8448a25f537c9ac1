"""A callback that tells which process trained what, and fails on rank 1 if asked to (for tests of several ranks)."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from pytorch_lightning import Callback


class Witness(Callback):
    """Writes `folder`/<pid>.json; where `folder`/fail exists, rank 1 of several raises after step 3.

    Where `folder`/kill exists, rank 1 is killed after step 5; where `folder`/wait does, all wait after it.
    """

    def __init__(self, folder: str, text: str = "") -> None:
        self.folder, self.text = Path(folder), text

    def on_train_start(self, trainer, module):
        message = {
            "job": Path(trainer.default_root_dir).name,
            "rank": trainer.global_rank,
            "world": trainer.world_size,
            "step": trainer.global_step,
            "devices": module.config["trainer"]["devices"],
            "text": self.text,
            "arguments": sys.argv[1:],
        }
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(message))

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3 and trainer.global_rank == 1 and (self.folder / "fail").exists():
            raise RuntimeError("I give up")
        if trainer.global_step == 5 and trainer.global_rank == 1 and (self.folder / "kill").exists():
            (self.folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        while trainer.global_step == 5 and (self.folder / "wait").exists():
            time.sleep(0.05)
