r"""
The SDEs: VP, sub-VP, VE
========================

:cite:t:`song2021` write the noise process as a stochastic differential equation, and show that it can be reversed in
time if the score is known:

.. math::

    \mathrm dx &= f(t)\, x\, \mathrm dt + g(t)\, \mathrm dw, \\
    \mathrm dx &= \bigl[f(t)\, x - g(t)^2 \nabla_x \log p_t(x)\bigr] \mathrm dt + g(t)\, \mathrm d\bar w .

The solution of the first line is a Gaussian around the data, :math:`x_t = \alpha(t)\, x_0 + \sigma(t)\, \epsilon`.
In this library a process *is* these two functions; f and g follow from them.
"""

# %%
# The three SDEs of the paper differ in alpha and sigma.  VP keeps the variance of the data at 1, sub-VP has less
# noise at every time, and VE leaves the signal alone and drowns it.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.process import VE, VP, Geometric, Linear, SubVP

processes = {"VP": VP(Linear()), "sub-VP": SubVP(Linear()), "VE": VE(Geometric(sigma_min=0.01, sigma_max=10.0))}
t = torch.linspace(1e-3, 1, 200, dtype=torch.float64)

figure, axes = plt.subplots(1, 3, figsize=(10, 3))
for name, process in processes.items():
    axes[0].plot(t, process.alpha(t), label=name)
    axes[1].plot(t, process.sigma(t), label=name)
    axes[2].plot(t, process.g(t), label=name)
for axis, title in zip(axes, (r"signal $\alpha(t)$", r"noise $\sigma(t)$", r"diffusion $g(t)$"), strict=True):
    axis.set(title=title, xlabel="t", yscale="linear" if "alpha" in title else "log")
axes[0].legend()

# %%
# Forward in time, data of two modes become noise.  Backward, with the exact score, noise becomes data: both follow
# the same densities.  Each panel shows twenty paths of the first coordinate over the density of the noised data; the
# right half of a path is the reverse SDE, by Euler-Maruyama.

from itertools import pairwise

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.sampler import EulerMaruyama, Sampler
from diffusion_lab.verification import denoiser_of

data, generator = two_modes(), torch.Generator().manual_seed(0)
steps = torch.linspace(1e-3, 1, 201, dtype=torch.float64)


def forward(process, x0):
    """x at each of `steps`, by the exact transitions from one time to the next."""
    path = [process.perturb(x0, steps[0], torch.randn(x0.shape, generator=generator))]
    for s, now in pairwise(steps):
        scale, variance = process.transition(s, now)
        path.append(scale * path[-1] + variance.sqrt() * torch.randn(x0.shape, generator=generator))
    return torch.stack(path).float()


figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True)
for axis, (name, process) in zip(axes, processes.items(), strict=True):
    denoiser, sampler = denoiser_of(data, process), Sampler(EulerMaruyama(), steps=500)
    x1 = process.prior_std * torch.randn(20, 2, generator=generator)
    back = list(sampler.trajectory(denoiser, x1, generator))
    paths = forward(process, data.sample(20, generator))
    axis.plot(steps, paths[..., 0], linewidth=0.8, alpha=0.8)
    axis.plot([2 - one.t for one in back], torch.stack([one.x[:, 0] for one in back]), linewidth=0.8, alpha=0.8)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(title=f"{name}: forward, then backward", ylabel="$x_t$")
axes[-1].set(xlabel="time", xticks=[0, 0.5, 1, 1.5, 2], xticklabels=["0", "0.5", "1", "0.5", "0"])

# %%
# In a configuration they are ``model=score_sde sde=vp``, ``subvp`` and ``ve``; ``schedule=`` replaces the schedule of
# VP by another one.
