r"""
The SDEs: VP, sub-VP, VE
========================

:cite:t:`song2021` write the noise process as a stochastic differential equation, and
show that it can be reversed in time if the score is known:

.. math::

    \mathrm dx &= f(t)\, x\, \mathrm dt + g(t)\, \mathrm dw, \\
    \mathrm dx &= \bigl[f(t)\, x - g(t)^2 \nabla_x \log p_t(x)\bigr] \mathrm dt + g(t)\, \mathrm d\bar w .

The solution of the first line is a Gaussian around the data, :math:`x_t = \alpha(t)\,
x_0 + \sigma(t)\, \epsilon`. In this library a process *is* these two functions; f and g
follow from them.
"""

# %%
# The three SDEs of the paper differ in alpha and sigma.  VP keeps the variance of the
# data at 1, sub-VP has less noise at every time, and VE keeps the signal as
# it is, and adds noise of growing variance.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.process import VE, VP, Geometric, Linear, SubVP

processes = {
    "VP": VP(Linear()),
    "sub-VP": SubVP(Linear()),
    "VE": VE(Geometric(sigma_min=0.01, sigma_max=10.0)),
}
t = torch.linspace(1e-3, 1, 200, dtype=torch.float64)

figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for name, process in processes.items():
    axes[0].plot(t, process.alpha(t), label=name)
    axes[1].plot(t, process.sigma(t), label=name)
    axes[2].plot(t, process.g(t), label=name)
for axis, title in zip(
    axes,
    (r"signal $\alpha(t)$", r"noise $\sigma(t)$", r"diffusion $g(t)$"),
    strict=True,
):
    axis.set(title=title, xlabel="t", yscale="linear" if "alpha" in title else "log")
axes[0].legend()

# %%
# Forward in time, data of two modes become noise.  Backward, with the exact score,
# noise becomes data: both follow the same densities.  Each panel shows thirty paths of
# the first coordinate over the density of the noised data, scaled to its maximum at
# each time.  The right half is the reverse SDE, solved by Euler-Maruyama.

from itertools import pairwise

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.sampler import EulerMaruyama, Sampler
from diffusion_lab.verification import denoiser_of

data, generator = two_modes(), torch.Generator().manual_seed(1)
steps = torch.linspace(1e-3, 1, 201, dtype=torch.float64)


def forward(process, x0):
    """x at each of `steps`, by the exact transitions from one time to the next."""

    def noise():
        return torch.randn(x0.shape, generator=generator)

    path = [process.perturb(x0, steps[0], noise())]
    for s, now in pairwise(steps):
        scale, variance = process.transition(s, now)
        path.append(scale * path[-1] + variance.sqrt() * noise())
    return torch.stack(path).float()


def density(process, x):
    """The density of the first coordinate at each of `steps`, scaled to its maximum."""
    alpha, sigma = (k[:, None] for k in process.alpha_sigma(steps))
    variance = (alpha * data.std) ** 2 + sigma**2
    modes = zip(data.means[:, 0], data.weights, strict=True)
    p = sum(w * torch.exp(-((x - alpha * m) ** 2) / (2 * variance)) for m, w in modes)
    return (p / p.amax(1, keepdim=True)).T


figure, axes = plt.subplots(3, 1, figsize=(8, 8), sharex=True)
for axis, (name, process) in zip(axes, processes.items(), strict=True):
    denoiser, sampler = denoiser_of(data, process), Sampler(EulerMaruyama(), steps=500)
    x1 = process.prior_std * torch.randn(30, 2, generator=generator)
    back = list(sampler.trajectory(denoiser, x1, generator))
    reach = 3 * process.sigma(steps).max().clamp(min=1).item()
    x = torch.linspace(-reach, reach, 300)
    image = density(process, x)
    style = {"cmap": "Blues", "vmax": 1.6, "origin": "lower", "aspect": "auto"}
    axis.imshow(image, extent=(0, 1, -reach, reach), **style)
    axis.imshow(image.flip(1), extent=(1, 2, -reach, reach), **style)
    style = {"linewidth": 0.6, "alpha": 0.7, "color": "tab:orange"}
    axis.plot(steps, forward(process, data.sample(30, generator))[..., 0], **style)
    paths = torch.stack([state.x[:, 0] for state in back])
    axis.plot([2 - state.t for state in back], paths, **style)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(title=f"{name}: forward, then backward", ylabel="$x_t$")
labels = ["0", "0.5", "1", "0.5", "0"]
axes[-1].set(xlabel="time", xticks=[0, 0.5, 1, 1.5, 2], xticklabels=labels)

# %%
# In a configuration they are ``model=score_sde sde=vp``, ``subvp`` and ``ve``;
# ``schedule=`` replaces the schedule of VP by another one.
