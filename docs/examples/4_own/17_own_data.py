r"""
A data set of your own
======================

A data set is a ``DataModule`` with one method, ``load``, which returns two torch data
sets: one to train on, and one held out.  Items are x or (x, label); values are grey
levels 0, 1, ..., or any real numbers.
"""

# %%
# Rings: points on circles around the origin, with the ring as the label.  They are real
# numbers, so ``grey_levels`` is null.

import os
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
(folder / "my_data.py").write_text('''
import torch
from torch.utils.data import TensorDataset

from diffusion_lab.data import DataModule


class Rings(DataModule):
    """Points on `rings` circles; the label of a point is its circle."""

    def __init__(self, rings: int = 3, **options) -> None:
        super().__init__(**options)
        self.rings = rings

    def load(self):
        return self.draw(20_000, seed=0), self.draw(2_000, seed=1)

    def draw(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(self.rings, (count,), generator=generator)
        angle = 2 * torch.pi * torch.rand(count, generator=generator)
        radius = 0.5 * (label + 1) + 0.03 * torch.randn(count, generator=generator)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        return TensorDataset(points, label)
''')
(folder / "conf/data").mkdir(parents=True)
(folder / "conf/data/rings.yaml").write_text("""
defaults:
  - override /network@_global_.network: mlp
  - override /metric@_global_.metric: none
  - _self_

_target_: my_data.Rings
rings: 3
shape: [2]
grey_levels: null
batch_size: 512
eval_batch_size: 2000
flip: false
conditional: true
""")

# %%
# Everything else works with it: a class-conditional model, guidance, likelihoods,
# several devices, sweeps.


def run(*command, status=0):
    """Run a command in the folder, as in a shell, and return what it prints."""
    names = {"DIFFUSION_LAB_PACKAGES": "my_data"}
    command = [sys.executable, "-m", *command, "--config-dir", "conf"]
    settings = {"cwd": folder, "env": os.environ | names, "text": True}
    done = subprocess.run(command, capture_output=True, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr.strip()


model = (
    "data=rings",
    "sampler_steps=100",
    "optimizer.lr=2e-3",
    "callback.ema.decay=0.99",
)
budget = ("trainer.max_steps=600", "hydra.run.dir=run", "logger=csv", "likelihood=none")
done = run("diffusion_lab.train", *model, *budget)
print(done.split("in run")[0])

# %%
# ``verify`` checks a data set, too: range, shape and labels, no held-out item in the
# training set, and an order that the seed determines.

print(run("diffusion_lab.verify", "data=rings"))

# %%
# In Python, three classes from the same run:

import matplotlib.pyplot as plt

sys.path.insert(0, str(folder))
os.environ["DIFFUSION_LAB_PACKAGES"] = "my_data"
import diffusion_lab

model = diffusion_lab.load(folder / "run")
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharex=True, sharey=True)
for label, axis in enumerate(axes):
    points = model.sample(600, label=label, sampler="dpm_solver", steps=20)
    axis.scatter(*points.T, s=2, linewidths=0)
    axis.set(title=f"label={label}", aspect="equal", xlim=(-2, 2), ylim=(-2, 2))

# %%
# Folders of images need no code at all: ``python train.py data=image_folder
# data.root=DIR``.
