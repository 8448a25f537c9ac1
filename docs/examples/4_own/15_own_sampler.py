r"""
A sampler of your own
=====================

A sampler is one function from x at time t to x at an earlier time s, as its paper
prints it.  This page writes a new one, has it verified, and samples with it, in a
folder outside of the package: ten minutes for a newcomer.

The method is the explicit midpoint rule for the probability flow in :math:`\lambda =
\log(\alpha / \sigma)`, DPM-Solver-2 :cite:p:`lu2022`:

.. math::

    u &= \frac{\alpha_m}{\alpha_t}\, x - \sigma_m (e^{h/2} - 1)\, \hat\epsilon(x, t), \\
    x_s &= \frac{\alpha_s}{\alpha_t}\, x - \sigma_s (e^{h} - 1)\, \hat\epsilon(u, m),
    \qquad h = \lambda_s - \lambda_t,

where m is the time half-way in :math:`\lambda`.
"""

# %%
# The step: ``p`` knows alpha, sigma and lambda at any time, ``denoise(x, t)`` returns
# the estimate as ``x0``, ``eps``, ``score`` or ``v``, ``noise(std)`` returns fresh
# noise, and ``past`` holds the previous estimates.

import os
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
STEP = '''
from dataclasses import dataclass
from math import exp

from diffusion_lab.sampler import Step


@dataclass(frozen=True)
class Midpoint(Step):
    """DPM-Solver-2 (Lu et al. 2022, Algorithm 1)."""

    def __call__(self, p, x, t, s, denoise, noise, past):
        m, h = p.between(t, s, 0.5), p.lambda_(s) - p.lambda_(t)
        eps = denoise(x, t).eps
        u = p.alpha(m) / p.alpha(t) * x - p.sigma(m) * (exp(h / 2) - 1) * eps
        eps = denoise(u, m).eps
        return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * (exp(h) - 1) * eps
'''
(folder / "my_samplers.py").write_text(STEP)

# %%
# A YAML gives it a name and its settings: ``sampler=mine``.

(folder / "conf/sampler").mkdir(parents=True)
(folder / "conf/sampler/mine.yaml").write_text("""
defaults: [custom]
steps: 20
predictor: {_target_: my_samplers.Midpoint}
""")

# %%
# ``verify`` checks it as it checks ours, on Gaussian data whose denoiser, flow and law
# of samples are known in closed form: does the recorded step equal the written one,
# does an image depend on its batch, how many network evaluations are made, are mean and
# standard deviation right, and of which order does it converge?


def run(*command, status=0):
    """Run a command in the folder, as in a shell, and return what it prints."""
    names = {"DIFFUSION_LAB_PACKAGES": "my_samplers"}
    command = [sys.executable, "-m", *command, "--config-dir", "conf"]
    settings = {"cwd": folder, "env": os.environ | names, "text": True}
    done = subprocess.run(command, capture_output=True, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


print(run("diffusion_lab.verify", "sampler=mine", "out=verified"))

# %%
# It draws what it has measured, here the order of convergence: the error against the
# number of steps, on four processes.

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(8, 5))
axis.imshow(plt.imread(folder / "verified/convergence.png"))
axis.axis("off")

# %%
# A wrong sign does not pass.  With it in the last line:

(folder / "my_samplers.py").write_text(STEP.replace("x - p.sigma(s)", "x + p.sigma(s)"))
said = run("diffusion_lab.verify", "sampler=mine", "out=wrong", status=1)
print("\n".join(line for line in said.splitlines() if "FAILED" in line))
(folder / "my_samplers.py").write_text(STEP)

# %%
# It is a sampler like any other now: of a trained model (``diffusion-lab sample
# ckpt_path=last sampler=mine --config-dir conf``), with guidance, control and any
# model, and in Python.  Here its error beside the library's solvers, on a mixture with
# exact score.

import torch

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.process import VP, Linear
from diffusion_lab.sampler import DDIM, EDM, ProbabilityFlow, Sampler
from diffusion_lab.verification import denoiser_of

sys.path.insert(0, str(folder))
from my_samplers import Midpoint

denoiser = denoiser_of(eight_gaussians(), VP(Linear()))
noise = torch.randn(
    300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)
exact = ProbabilityFlow(1e-9, 1e-9, precision="float64")
(end,) = exact.solve(denoiser, noise, [1.0, 1e-2])
settings = {
    "spacing": "log_snr",
    "precision": "float64",
    "denoise": False,
    "t_end": 1e-2,
}
figure, axis = plt.subplots(figsize=(8, 3))
budgets = (8, 16, 32, 64, 128)
for name, step, cost in (
    ("DDIM", DDIM(), 1),
    ("Heun", EDM(2), 2),
    ("mine", Midpoint(), 2),
):
    errors = []
    for budget in budgets:
        sampler = Sampler(step, steps=budget // cost + 1, **settings)
        *_, last = sampler.trajectory(denoiser, noise)
        errors.append((last.x - end).norm(dim=1).mean().item())
    axis.plot(budgets, errors, marker="o", label=name)
axis.set(
    xscale="log", yscale="log", xlabel="network evaluations", ylabel="error of a sample"
)
axis.legend()
