r"""
A loss of your own
==================

A loss is a class whose call maps (denoiser, x0, generator) to the loss of each item.
The denoiser returns its estimate as eps, x0, score or v, whatever the network predicts,
so a loss works with every model.

As an example, a Huber loss of the noise,

.. math:: \sqrt{\lVert \hat\epsilon - \epsilon \rVert^2 + c^2} - c ,

against data with outliers: a mean square follows them, a robust loss less.
"""

# %%
# ``draw_each`` and ``draw`` take times and noise from the generators that they are
# given: in training from the global one, in validation from one generator for each
# item, so that each item always sees the same noise.

import os
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
(folder / "my_losses.py").write_text('''
from diffusion_lab.noise import draw, draw_each
from diffusion_lab.ranges import Positive, checked


class Huber:
    """sqrt(|eps_hat - eps|^2 + c^2) - c."""

    @checked
    def __init__(self, c: Positive = 0.1) -> None:
        self.c = c

    def __call__(self, denoiser, x0, generator=None):
        process = denoiser.process
        t = draw_each(process.sample_times, len(x0), x0.device, generator)
        eps = draw(x0.shape, generator, x0.dtype, x0.device)
        error = denoiser(process.perturb(x0, t, eps), t).eps - eps
        return (error.square().flatten(1).sum(1) + self.c**2).sqrt() - self.c
''')
(folder / "conf/loss").mkdir(parents=True)
(folder / "conf/loss/huber.yaml").write_text("_target_: my_losses.Huber\nc: 0.1\n")

# %%
# ``loss=huber`` trains any model with it.


def run(*command, status=0):
    """Run a command in the folder, as in a shell, and return what it prints."""
    names = {"DIFFUSION_LAB_PACKAGES": "my_losses"}
    command = [sys.executable, "-m", *command, "--config-dir", "conf"]
    settings = {"cwd": folder, "env": os.environ | names, "text": True}
    done = subprocess.run(command, capture_output=True, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr.strip()


budget = (
    "trainer.max_steps=500",
    "logger=csv",
    "likelihood=none",
    "metric=none",
    "data=toy2d",
)
done = run("diffusion_lab.train", "loss=huber", "hydra.run.dir=huber", *budget)
print(done.split("in huber")[0])

# %%
# ``verify`` asks of a loss that its gradient vanishes where it should, at the exact
# denoiser of Gaussian data, which estimates the *mean* of the noise.  Whether a robust
# loss has its optimum there is worth knowing: for the symmetric posteriors of Gaussian
# data it has.

checks = run("diffusion_lab.verify", "loss=huber").splitlines()
print(
    "\n".join(
        line
        for line in checks
        if line.startswith(("check", "DDPM")) or "passed" in line
    )
)

# %%
# The loss in Python, on a network of one constant.  The mean-square estimate of the
# noise is its mean given x; the robust one is nearer to the median, so that few distant
# points move it less.  The data are two points, one of which is an outlier of weight q.

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(folder))
from my_losses import Huber

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import SingleLevel


def best_constant(loss, share):
    """The best estimate of x_0 that does not look at x, for data at 0 and, rarely, at 5."""
    x0 = torch.zeros(2000, 1)
    x0[: int(2000 * share)] = 5.0
    candidates = torch.linspace(-1, 3, 81)
    values = []
    for c in candidates:
        row = Parameterization("x0", "nothing", bounded=False)
        denoiser = Denoiser(lambda x, t, c=c: c.expand_as(x), SingleLevel(1.0), row)
        torch.manual_seed(0)
        values.append(loss(denoiser, x0).mean())
    return candidates[torch.stack(values).argmin()].item()


shares = torch.linspace(0, 0.4, 9).tolist()
figure, axis = plt.subplots(figsize=(8, 3))
for name, loss in {
    "mean square": DenoisingLoss("x0"),
    "Huber, c = 0.1": Huber(0.1),
}.items():
    axis.plot(shares, [best_constant(loss, q) for q in shares], marker="o", label=name)
axis.set(xlabel="share of outliers at 5", ylabel="best constant estimate")
axis.legend()
