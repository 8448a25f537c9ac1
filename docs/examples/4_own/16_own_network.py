r"""
A network of your own
=====================

A network is any module with ``forward(x, t)``: x is what the process has made of the
data, t what the model tells of the noise level, and the output has the shape of x.  It
knows nothing of schedules, losses or image ranges, so one file serves every model.
"""

# %%
# Random Fourier features of the points, and one hidden layer.  Ranges and options are
# declared in the signature: a wrong value is refused in a line, before anything is
# imported.

import os
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
(folder / "my_networks.py").write_text('''
import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import nn


class Fourier(nn.Module):
    """Random Fourier features of x and t, and two layers."""

    def __init__(
        self,
        features: Annotated[int, Ge(8)] = 256,
        scale: float = 1.0,
        activation: Literal["silu", "gelu"] = "silu",
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(3, features // 2))
        act = {"silu": nn.SiLU, "gelu": nn.GELU}[activation]
        self.layers = nn.Sequential(
            nn.Linear(features + 3, 128), act(), nn.Linear(128, 128), act(), nn.Linear(128, 2)
        )

    def forward(self, x, t):
        seen = torch.cat([x, t[:, None] / 500 - 1], 1)
        angles = seen @ self.frequencies
        return self.layers(torch.cat([seen, angles.sin(), angles.cos()], 1))
''')
(folder / "conf/network").mkdir(parents=True)
(folder / "conf/network/fourier.yaml").write_text("""
_target_: my_networks.Fourier
features: 256
scale: 1.0
activation: silu   # silu | gelu
""")

# %%
# ``network=fourier`` trains it, with any model and any data of points.  Before the
# first step a rehearsal sends two items through loss, gradient, sampler and likelihood,
# so mistakes are reported at once.


def run(*command, status=0):
    """Run a command in the folder, as in a shell, and return what it prints."""
    names = {"DIFFUSION_LAB_PACKAGES": "my_networks"}
    command = [sys.executable, "-m", *command, "--config-dir", "conf"]
    settings = {"cwd": folder, "env": os.environ | names, "text": True}
    done = subprocess.run(command, capture_output=True, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr.strip()


common = ("data=toy2d", "network=fourier", "logger=csv", "likelihood=none")
budget = ("trainer.max_steps=600", "hydra.run.dir=run", "data.name=moons")
done = run("diffusion_lab.train", *common, *budget)
print(done[-1500:])

# %%
# The samples over the true density, and the learned score, as the run has drawn them:

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(8, 4.2))
axis.imshow(plt.imread(folder / "run/samples.png"))
axis.axis("off")

# %%
# What is wrong is said in a line, within a second: a value out of range, and a name
# that does not exist.

for wrong in ("network.features=4", "network.activation=relu", "network.width=64"):
    print(run("diffusion_lab.train", *common, wrong, status=2))

# %%
# A network for labels has ``forward(x, t, label)``, and gets the number of classes as
# its argument ``classes``; the label ``classes`` means "none".
