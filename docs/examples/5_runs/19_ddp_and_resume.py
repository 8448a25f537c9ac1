r"""
Several devices, and interrupted runs
=====================================

A long run is stopped sooner or later: by a time limit, a full disk, a person.  Here two
ranks train together (on the CPU, as two GPUs would), are stopped in the middle, and
go on.  The result is bit for bit that of a run that nobody stopped.
"""

# %%
# A run with two ranks.  ``data.batch_size`` is the total; each rank takes half of it,
# draws its own times and noise, and the gradients are averaged.

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

folder = Path(tempfile.mkdtemp())
TRAIN = [sys.executable, "-m", "diffusion_lab.train"]
SETTINGS = [
    *(
        "data=toy2d",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_steps=600",
    ),
    *("callback.checkpoint.every_n_steps=100", "likelihood=none", "logger=csv"),
]
QUIET = {
    "cwd": folder,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}


def finish(process):
    """Wait for a run, and return its exit status and the last lines that it printed."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, said.strip().splitlines()[-3:]


whole = subprocess.Popen([*TRAIN, *SETTINGS, "hydra.run.dir=whole"], **QUIET)
status, said = finish(whole)
print(status)

# %%
# The same run, stopped by SIGTERM after its first checkpoint, as a cluster does before
# the time limit.  It finishes its step, saves, and exits with status 143.

stopped = subprocess.Popen([*TRAIN, *SETTINGS, "hydra.run.dir=stopped"], **QUIET)
checkpoints = folder / "stopped/checkpoints"
while stopped.poll() is None and not list(checkpoints.glob("step_*.ckpt")):
    time.sleep(0.02)
stopped.send_signal(signal.SIGTERM)
status, said = finish(stopped)
print(status, said[-1].split(":")[0], sep=": ")
assert status == 143

# %%
# ``ckpt_path=RUN`` goes on, with the settings of the run.

resumed = subprocess.Popen([*TRAIN, f"ckpt_path={folder / 'stopped'}"], **QUIET)
status, said = finish(resumed)
print(status)

# %%
# Both curves are one, and all weights are equal to the last bit: those of the network,
# of the EMA, and the optimiser's moments.

import csv

import matplotlib.pyplot as plt
import torch


def curve(run):
    rows = list(csv.DictReader((folder / run / "metrics.csv").read_text().splitlines()))
    rows = [row for row in rows if row["train/loss"]]
    found = [(int(row["step"]), float(row["train/loss"])) for row in rows]
    return zip(*found, strict=True)


figure, axis = plt.subplots(figsize=(8, 3))
axis.plot(*curve("whole"), linewidth=4, alpha=0.4, label="not stopped")
axis.plot(*curve("stopped"), linewidth=1.2, label="stopped, and resumed")
axis.set(xlabel="step", ylabel="loss")
axis.legend()


def tensors(value):
    """All tensors in the containers of a checkpoint."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def last(run):
    path = sorted((folder / run / "checkpoints").glob("step_*.ckpt"))[-1]
    return list(tensors(torch.load(path, weights_only=True)))


equal = [
    torch.equal(*pair) for pair in zip(last("whole"), last("stopped"), strict=True)
]
print(f"{sum(equal)} of {len(equal)} tensors are equal")
assert all(equal)

# %%
# The guide's page on long runs has the rest: several nodes, SLURM, FSDP, ranks that die
# or hang.
