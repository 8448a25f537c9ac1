r"""
Several devices, and interrupted runs
=====================================

A long run is stopped sooner or later: by a time limit, a full disk, a person.  Here two
processes train together (on the CPU, as two GPUs would), are stopped in the middle, and
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
        "trainer.max_steps=300",
    ),
    *("metric=none", "likelihood=none", "logger=csv"),
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
# The same run, stopped by SIGTERM as soon as it has logged some steps, as a cluster
# does before the time limit.  It finishes its step, saves, and exits with status 143.

stopped = subprocess.Popen([*TRAIN, *SETTINGS, "hydra.run.dir=stopped"], **QUIET)
log = folder / "stopped/metrics.csv"
while stopped.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
    time.sleep(0.02)
stopped.send_signal(signal.SIGTERM)
status, said = finish(stopped)
print(status, *said, sep="\n")

# %%
# ``ckpt_path=RUN`` goes on, with the settings of the run.

resumed = subprocess.Popen([*TRAIN, f"ckpt_path={folder / 'stopped'}"], **QUIET)
status, said = finish(resumed)
print(status)

# %%
# Both curves are one, and all weights are equal to the last bit: those of the network,
# of the average, and the optimiser's moments.

import csv

import matplotlib.pyplot as plt
import torch


def curve(run):
    rows = list(csv.DictReader((folder / run / "metrics.csv").read_text().splitlines()))
    key = next(name for name in rows[0] if name.startswith("train") and "loss" in name)
    found = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
    return zip(*found, strict=True)


figure, axis = plt.subplots(figsize=(8, 3))
axis.plot(*curve("whole"), linewidth=4, alpha=0.4, label="not stopped")
axis.plot(*curve("stopped"), linewidth=1.2, label="stopped, and resumed")
axis.set(xlabel="step", ylabel="loss")
axis.legend()


def tensors(run):
    checkpoint = sorted((folder / run / "checkpoints").glob("step_*.ckpt"))[-1]
    return torch.load(checkpoint, weights_only=True)["state_dict"]


ours, theirs = tensors("whole"), tensors("stopped")
equal = [torch.equal(ours[name], theirs[name]) for name in ours]
print(f"{sum(equal)} of {len(equal)} tensors are equal")
assert all(equal)

# %%
# The guide's page on long runs has the rest: several nodes, SLURM, FSDP, ranks that die
# or hang.
