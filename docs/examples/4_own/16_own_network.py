r"""
A network of your own
=====================

A network is any module with ``forward(x, t)``: x is the noised data, t the noise level
as the model passes it (c_noise), and the output has the shape of x.  It
knows nothing of schedules, losses or image ranges, so one file serves every model.
"""

# %%
# Residual layers of points, each shifted by cosines of the noise level.  Ranges and
# options are declared in the signature: a wrong value is refused in a line, before
# anything is imported.

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


class Plain(nn.Module):
    """Residual layers, each shifted by cosines of the noise level."""

    def __init__(
        self,
        width: Annotated[int, Ge(8)] = 128,
        depth: Annotated[int, Ge(1)] = 3,
        activation: Literal["silu", "gelu"] = "silu",
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 1000 * torch.arange(16))
        self.shifts = nn.Linear(16, depth * width)
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.act = {"silu": nn.SiLU, "gelu": nn.GELU}[activation]()

    def forward(self, x, t):
        shifts = self.shifts((t[:, None] * self.frequencies).cos())
        h = self.first(x)
        for layer, shift in zip(self.layers, shifts.chunk(len(self.layers), dim=1)):
            h = h + self.act(layer(h) + shift)
        return self.last(h)
''')
(folder / "conf/network").mkdir(parents=True)
(folder / "conf/network/plain.yaml").write_text("""
_target_: my_networks.Plain
width: 128
depth: 3
activation: silu   # silu | gelu
""")

# %%
# ``network=plain`` trains it, with any model and any data of points.  Before the first
# step a rehearsal sends two items through loss, gradient, sampler and likelihood, so
# mistakes are reported at once.


def run(*command, status=0):
    """Run a command in the folder, as in a shell, and return what it prints."""
    names = {"DIFFUSION_LAB_PACKAGES": "my_networks"}
    command = [sys.executable, "-m", *command, "--config-dir", "conf"]
    settings = {"cwd": folder, "env": os.environ | names, "text": True}
    done = subprocess.run(command, capture_output=True, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr.strip()


common = (
    "data=toy2d",
    "network=plain",
    "logger=csv",
    "likelihood=none",
    "optimizer.lr=3e-3",
)
budget = ("trainer.max_steps=1200", "hydra.run.dir=run", "callback.ema.decay=0.99")
done = run("diffusion_lab.train", *common, *budget)
print(done.split("in run")[0])

# %%
# ``verify`` checks it alone: sizes of the output, a gradient for every parameter, no
# item that depends on another.

print(run("diffusion_lab.verify", "network=plain", "data=toy2d"))

# %%
# The samples over the true density, and the learned score, as the run has drawn them:

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(8, 4.2))
axis.imshow(plt.imread(folder / "run/samples.png"))
axis.axis("off")

# %%
# What is wrong is said in a line, within a second: a value out of range, and a name
# that does not exist.

for wrong in ("network.width=4", "network.activation=relu", "network.heads=4"):
    print(run("diffusion_lab.train", *common, wrong, status=2))

# %%
# A network for labels has ``forward(x, t, label)``, and gets the number of classes as
# its argument ``classes``; the label ``classes`` means "none".
