r"""
Sweeps: many runs, one table
============================

Is a difference between two settings larger than that between two seeds?  A sweep
answers it: ``-m`` runs every combination of the listed values, and at the end compares
the runs, with those that differ only in the seed summarised as mean and standard
deviation.
"""

# %%
# Two schedules, three seeds, six runs.  Each has a worker of its own; if one fails, the
# others go on, and the same command runs what is missing.

import json
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
command = [
    *(
        sys.executable,
        "-m",
        "diffusion_lab.train",
        "-m",
        "schedule=linear,cosine",
        "seed=1,2,3",
    ),
    *("data=toy2d", "network.width=64", "trainer.max_steps=400", "metric.samples=2000"),
    *("likelihood=none", "logger=csv", "sampler.steps=50", "hydra.sweep.dir=sweep"),
]
done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
assert done.returncode == 0, done.stderr
print((folder / "sweep/comparison.md").read_text().split("## Protocols")[0])

# %%
# The sweep's directory holds every run, and the comparison:

for path in sorted((folder / "sweep").rglob("*")):
    if len(path.relative_to(folder).parts) <= 2 and not path.name.startswith("."):
        print(path.relative_to(folder))

# %%
# ``results.json`` of a run has every number with its protocol: how many samples,
# against what, by which sampler, at how many network evaluations.  Numbers are ranked
# only against those of the same protocol.

import matplotlib.pyplot as plt

results = {}
for path in sorted((folder / "sweep").rglob("results.json")):
    config = (path.parent / "config.yaml").read_text()
    schedule = "Cosine" if "process.Cosine" in config else "Linear"
    metrics = json.loads(path.read_text())["metrics"]
    name = next(key for key in metrics if key.startswith("energy_distance"))
    results.setdefault(schedule, []).append(metrics[name]["value"])
figure, axis = plt.subplots(figsize=(8, 2.2))
for row, (_, values) in enumerate(sorted(results.items())):
    axis.plot(values, [row] * len(values), "o", markersize=8)
axis.set(yticks=range(len(results)), yticklabels=sorted(results), ylim=(-0.5, 1.5))
axis.set(xlabel="energy distance of each seed", xscale="log")

# %%
# Optuna's search, joblib and SLURM are ``hydra/sweeper=optuna``,
# ``hydra/launcher=joblib`` and ``submitit_slurm``.  Runs made one by one are compared
# by ``diffusion-lab compare RUN RUN ...``.
